"""What PyTorch offers for modules in general, and a registered one does not go along with."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.bad_input.table import MATRIX, ONES, Bad, Table, registered


def called_with_the_plain_key(module: nn.Module) -> None:
    torch.func.functional_call(module, {"weight": torch.zeros(3, 3)}, (ONES,))


def called_with_a_plain_key_inside(model: nn.Module) -> None:
    plain = torch.zeros(3, 3, requires_grad=True)
    torch.func.functional_call(model, {"0.weight": plain}, (ONES,))


def assigned_in_vmap(module: nn.Module) -> None:
    torch.func.vmap(lambda x: (setattr(module, "weight", -ONES), x)[1])(torch.ones(2))


def traced_while_caching(module: nn.Module) -> None:
    with parametrize.cached():
        torch.jit.trace(module, ONES)


class Diverging(nn.Linear):
    """Whose reset goes wrong, once it is told to."""

    diverges = False

    def __init__(self) -> None:
        super().__init__(3, 3, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, math.nan if self.diverges else -1.0)


def diverging() -> nn.Module:
    module = register_negative_diagonal(Diverging())
    module.diverges = True
    return module


def chained() -> nn.Module:
    return parametrize.register_parametrization(registered(), "weight", nn.Identity())


FUNCTIONAL = (
    "weight: expected no assignment inside a torch.func transform or functional_call, got one; "
    "give functional_call the key parametrizations.weight.original instead"
)
WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], object], Any, str]] = {
    "functional_call: the plain key": (
        registered,
        called_with_the_plain_key,
        RuntimeError,
        FUNCTIONAL,
    ),
    "functional_call: the plain key of a model": (
        lambda: nn.Sequential(registered()),
        called_with_a_plain_key_inside,
        RuntimeError,
        FUNCTIONAL,
    ),
    "vmap: an assignment": (registered, assigned_in_vmap, RuntimeError, FUNCTIONAL),
    "jit.trace: in a cached block": (
        registered,
        traced_while_caching,
        RuntimeError,
        "Cannot trace a model while caching parametrizations.",
    ),
    "jit.script: a registered layer": (
        registered,
        torch.jit.script,
        TypeError,
        "expected a module without a negative diagonal for torch.jit.script, got "
        "ParametrizedLinear; script a baked copy, which "
        "remove_negative_diagonal(copy.deepcopy(model), ...) gives, or use torch.export",
    ),
    "jit.script: a model with one": (
        lambda: nn.Sequential(registered()),
        torch.jit.script,
        TypeError,
        "expected a module without a negative diagonal for torch.jit.script, got ...",
    ),
    "reset_parameters: to NaN": (
        diverging,
        lambda module: module.reset_parameters(),
        ValueError,
        f"weight: expected a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}",
    ),
    "plain_state_dict: another parametrization beside ours": (
        chained,
        plain_state_dict,
        ValueError,
        "weight: expected no other parametrization beside the negative diagonal, found "
        "ParametrizationList(...)",
    ),
    "register_buffer: over a registered tensor": (
        registered,
        lambda module: module.register_buffer("weight", ONES),
        KeyError,
        "\"attribute 'weight' already exists\"",
    ),
}

ROWS: Table = {label: Bad(*row) for label, row in WAYS.items()}
