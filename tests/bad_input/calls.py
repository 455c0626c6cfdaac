"""No modules, names or initialisers, and what PyTorch offers that a registered module refuses."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.bad_input import table as t
from tests.bad_input.table import Bad, Table, Values, given, registered
from tests.bad_input.tensors import bare, recurrent
from tests.support.modules import linear, transformer

NAMED: dict[str, Callable[..., Any]] = {
    "register_negative_diagonal": register_negative_diagonal,
    "remove_negative_diagonal": remove_negative_diagonal,
    "init_": lambda module, name="weight": init_(module, name, nn.init.zeros_),
}
OF_A_MODEL: dict[str, Callable[..., Any]] = {
    "negative_diagonals": negative_diagonals,
    "plain_state_dict": plain_state_dict,
}
NO_MODULES = [None, "layer", 3, [nn.Linear(2, 2)], nn.Linear, torch.ones(2)]
NO_NAMES = t.by_type("tensor_name: expected a string, got ", None, 3, b"weight", ["weight"])
# With the names that are near.
NEAR_WEIGHT = ["wieght", "weight.", ".weight", "weight.weight", "*.wieght"]
NEAR_WEIGHT += ["parametrizations.weight.original"]
UNKNOWN = {**dict.fromkeys(NEAR_WEIGHT, "weight"), **dict.fromkeys(["", "["], "weight, bias")}
WITHOUT = "expected a tensor registered with a negative diagonal, got one without"


def missing(name: str, kind: str, near: str) -> str:
    return (
        f"{name!r}: expected the name of a parameter or buffer in {kind}, found no match; near "
        f"names: {near}"
    )


def _at_every_door() -> Table:
    rows: Table = {}
    for name, function in (NAMED | OF_A_MODEL).items():
        argument = "module" if name in NAMED else "model"
        values = t.by_type(f"{argument}: expected an nn.Module, got ", *NO_MODULES)
        for label, (bad, error, message) in values.items():
            rows[f"{name}: a {label}"] = Bad(lambda bad=bad: bad, function, error, message)
    for name, function in NAMED.items():
        is_new = name == "register_negative_diagonal"
        make, kind = (linear, "Linear") if is_new else (registered, "ParametrizedLinear")
        unknown = {
            bad: (bad, ValueError, missing(bad, kind, near)) for bad, near in UNKNOWN.items()
        }
        rows |= given(f"{name}, a name", make, function, unknown)
        rows |= given(f"{name}, a name that is", registered, function, NO_NAMES)
        if not is_new:
            pattern = "'*': expected tensors with a negative diagonal in Linear, found no match; "
            for made, bad, message in (
                (linear, "weight", f"weight: {WITHOUT}, {t.MATRIX}"),
                (registered, "bias", f"bias: {WITHOUT}, shape (3,), torch.float32"),
                (linear, "*", f"{pattern}near names: weight, bias"),
            ):
                values = {f"{bad} is not registered": (bad, ValueError, message)}
                rows |= given(name, made, function, values)
    return rows


def memory() -> nn.Module:
    module = nn.Module()
    module.register_parameter("keys", nn.Parameter(torch.randn(3, 3)))
    return module


NESTED = "encoder.layers.0.linear1.wieght"
# A module, a name in it, and what is said of the name.
NAMES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (nn.ReLU, "weight", missing("weight", "ReLU", "none, it has no tensors")),
    (lambda: nn.Linear(2, 2, bias=False), "bias", missing("bias", "Linear", "weight")),
    (transformer, NESTED, missing(NESTED, "ModuleDict", "encoder.layers.0.linear1.weight, ...")),
    (
        lambda: t.quietly(lambda: nn.utils.weight_norm(linear())),
        "weight",
        missing("weight", "Linear", "weight_v, weight_g"),
    ),
    (
        lambda: nn.LayerNorm(3),
        "*",
        "'*': expected tensors with a diagonal in LayerNorm, found no match; near names: weight, "
        "bias",
    ),
    (
        memory,
        "keys",
        "keys: expected a name that an nn.ModuleDict can hold, ..., got 'keys', ...",
    ),
]


def _fails(tensor: Tensor) -> None:
    tensor.zero_()
    raise RuntimeError("stopped")


def _swaps(value: Tensor) -> Callable[[Tensor], None]:
    def initializer(tensor: Tensor) -> None:
        tensor.data = value

    return initializer


FINITE = f"weight: {t.NOT_FINITE_MESSAGE}"
NOT_3 = f"weight: expected {t.NOT_NEGATIVE.format(3, 1)}; got {t.MATRIX}"
SHAPE = f"{t.WANTED}shape (3, 2), torch.float32 on cpu"
DTYPE = f"{t.WANTED}shape (3, 3), torch.float64 on cpu"
NO_CALLABLES = [None, "zeros_", 3, t.ONES, [nn.init.zeros_]]
INITIALIZERS: Values = {
    **t.by_type(
        "initializer: expected a callable, got ", None, "zeros_", 3, t.ONES, [nn.init.zeros_]
    ),
    "one that makes NaN": (lambda tensor: tensor.fill_(math.nan), ValueError, FINITE),
    "one that makes infinity": (lambda tensor: tensor.fill_(-math.inf), ValueError, FINITE),
    "one that resizes": (lambda tensor: tensor.resize_(3, 2), ValueError, SHAPE),
    "one that swaps the shape": (_swaps(torch.ones(3, 2)), ValueError, SHAPE),
    "one that swaps the dtype": (_swaps(t.ONES.double()), ValueError, DTYPE),
    "one that returns another tensor": (
        lambda tensor: -t.ONES,
        ValueError,
        f"initializer: expected a callable ... in place, got one ... returned another, {t.MATRIX}",
    ),
    "one that fails": (_fails, RuntimeError, "stopped"),
}


def functional_call(key: str) -> Callable[[nn.Module], object]:
    plain = torch.zeros(3, 3, requires_grad="." in key)
    return lambda module: torch.func.functional_call(module, {key: plain}, (t.ONES,))


def in_a_model() -> nn.Module:
    return nn.Sequential(registered())


class Diverging(nn.Linear):
    """Whose reset goes wrong, once it is told to."""

    diverges = False

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, math.nan if self.diverges else -1.0)


def diverging() -> nn.Module:
    module = register_negative_diagonal(Diverging(3, 3, bias=False))
    module.diverges = True
    return module


FUNCTIONAL = "weight: expected no assignment inside a ... functional_call, got one; give ..."
SCRIPT = "expected a module without a negative diagonal for torch.jit.script, got a registered ..."
ROWS: Table = {
    **_at_every_door(),
    **{
        f"register_negative_diagonal: {name} of {make()!r:.20}": Bad(
            make, partial(register_negative_diagonal, tensor_name=name), ValueError, message
        )
        for make, name, message in NAMES
    },
    **given("init_", registered, lambda module, bad: init_(module, "weight", bad), INITIALIZERS),
    "init_: what the policy refuses": Bad(
        lambda: registered(infeasible="error"),
        lambda module: init_(module, "weight", nn.init.ones_),
        ValueError,
        NOT_3,
    ),
    "init_: NaN in the second of two": Bad(
        lambda: register_negative_diagonal(nn.Sequential(linear(), linear()), "*.weight"),
        lambda model, values=(-3.0, math.nan): init_(
            model, "*.weight", lambda t, left=list(values): t.fill_(left.pop(0))
        ),
        ValueError,
        f"1.{FINITE}",
    ),
    "functional_call: the plain key": Bad(
        registered, functional_call("weight"), RuntimeError, FUNCTIONAL
    ),
    "functional_call: the plain key of a model": Bad(
        in_a_model, functional_call("0.weight"), RuntimeError, FUNCTIONAL
    ),
    "vmap: an assignment": Bad(
        registered,
        lambda module: torch.vmap(lambda x: (t.assign(module, -t.ONES), x)[1])(torch.ones(2)),
        RuntimeError,
        FUNCTIONAL,
    ),
    **{
        f"jit.script: {label}": Bad(make, torch.jit.script, TypeError, SCRIPT)
        for label, make in {
            "a registered layer": registered,
            "one registered by PyTorch": bare,
            "a model with one": in_a_model,
        }.items()
    },
    **{
        f"complex64: {name}": Bad(
            make,
            lambda module: module._apply(lambda tensor: tensor.to(torch.complex64)),
            TypeError,
            f"{name}: expected a cast to {t.FLOATING}, got torch.complex64",
        )
        for name, make in {"weight": registered, "weight_hh_l0": recurrent}.items()
    },
    "reset_parameters: to NaN": Bad(
        diverging, lambda module: module.reset_parameters(), ValueError, FINITE
    ),
    "plain_state_dict: another parametrization beside ours": Bad(
        lambda: parametrize.register_parametrization(registered(), "weight", nn.Identity()),
        plain_state_dict,
        ValueError,
        "weight: expected no other parametrization ..., found ParametrizationList(...)",
    ),
}
