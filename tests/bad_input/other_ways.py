"""What PyTorch offers for modules in general, and a registered one does not go along with."""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.bad_input.table import NOT_FINITE_MESSAGE, ONES, Bad, Table, registered


def called_with_the_plain_key(module: nn.Module) -> None:
    torch.func.functional_call(module, {"weight": torch.zeros(3, 3)}, (ONES,))


def called_with_a_plain_key_inside(model: nn.Module) -> None:
    plain = torch.zeros(3, 3, requires_grad=True)
    torch.func.functional_call(model, {"0.weight": plain}, (ONES,))


def assigned_in_vmap(module: nn.Module) -> None:
    torch.func.vmap(lambda x: (setattr(module, "weight", -ONES), x)[1])(torch.ones(2))


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
SCRIPT = "expected a module without a negative diagonal for torch.jit.script, got "
COPY = "script a baked copy, which remove_negative_diagonal(copy.deepcopy(model), ...) gives"


def in_a_model() -> nn.Module:
    return nn.Sequential(registered())


ROWS: Table = {
    "functional_call: the plain key": Bad(
        registered, called_with_the_plain_key, RuntimeError, FUNCTIONAL
    ),
    "functional_call: the plain key of a model": Bad(
        in_a_model, called_with_a_plain_key_inside, RuntimeError, FUNCTIONAL
    ),
    "vmap: an assignment": Bad(registered, assigned_in_vmap, RuntimeError, FUNCTIONAL),
    "jit.script: a registered layer": Bad(
        registered,
        torch.jit.script,
        TypeError,
        f"{SCRIPT}a registered one; {COPY}, or use torch.export",
    ),
    "jit.script: a model with one": Bad(in_a_model, torch.jit.script, TypeError, f"{SCRIPT}..."),
    "reset_parameters: to NaN": Bad(
        diverging,
        lambda module: module.reset_parameters(),
        ValueError,
        f"weight: {NOT_FINITE_MESSAGE}",
    ),
    "plain_state_dict: another parametrization beside ours": Bad(
        chained,
        plain_state_dict,
        ValueError,
        "weight: expected no other parametrization beside the negative diagonal, found "
        "ParametrizationList(...)",
    ),
}
