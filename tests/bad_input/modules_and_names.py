"""What is no module, and names that mean nothing in it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.bad_input.table import MATRIX, Bad, Table, Values, by_type, given, quietly, registered
from tests.support.modules import linear

Function = Callable[..., Any]


def initialise(module: Any, tensor_name: Any = "weight") -> nn.Module:
    return init_(module, tensor_name, nn.init.zeros_)


def memory() -> nn.Module:
    module = nn.Module()
    module.register_parameter("keys", nn.Parameter(torch.randn(3, 3)))
    return module


NAMED: dict[str, Function] = {
    "register_negative_diagonal": register_negative_diagonal,
    "remove_negative_diagonal": remove_negative_diagonal,
    "init_": initialise,
}
OF_A_MODEL: dict[str, Function] = {
    "negative_diagonals": negative_diagonals,
    "plain_state_dict": plain_state_dict,
}
NO_MODULE = {
    "none": None,
    "a string": "layer",
    "a number": 3,
    "a list": [nn.Linear(2, 2)],
    "a class": nn.Linear,
    "a tensor": torch.ones(2),
}
NO_NAME = by_type(
    {"none": None, "a number": 3, "bytes": b"weight", "a list": ["weight"]},
    "tensor_name: expected a string, got ",
)
UNKNOWN = {
    "empty": ("", "weight, bias"),
    "misspelt": ("wieght", "weight"),
    "with a dot behind": ("weight.", "weight"),
    "with a dot before": (".weight", "weight"),
    "of a tensor's tensor": ("weight.weight", "weight"),
    "that no pattern fits": ("*.wieght", "weight"),
    "of an open bracket": ("[", "weight, bias"),
    "of the original": ("parametrizations.weight.original", "weight"),
}
EXPECTED = "expected the name of a parameter or buffer in"
WITHOUT = "expected a tensor registered with a negative diagonal, got one without"


def _at_every_door() -> Table:
    rows: Table = {}
    for name, function in (NAMED | OF_A_MODEL).items():
        argument = "module" if name in NAMED else "model"
        for label, bad in NO_MODULE.items():
            message = f"{argument}: expected an nn.Module, got {type(bad).__name__}"
            row = Bad(lambda bad=bad: bad, function, TypeError, message)
            rows[f"{name}: {label} as module"] = row
    for name, function in NAMED.items():
        is_new = function is register_negative_diagonal
        kind = "Linear" if is_new else "ParametrizedLinear"
        unknown: Values = {
            label: (
                bad,
                ValueError,
                f"{bad!r}: {EXPECTED} {kind}, found no match; near names: {near}",
            )
            for label, (bad, near) in UNKNOWN.items()
        }
        make = linear if is_new else registered
        rows |= given(f"{name}, a name", make, function, unknown)
        rows |= given(f"{name}, a name that is", registered, function, NO_NAME)
    for name in ("remove_negative_diagonal", "init_"):
        rows[f"{name}: a tensor that is not registered"] = Bad(
            linear, NAMED[name], ValueError, f"weight: {WITHOUT}, {MATRIX}"
        )
        rows[f"{name}: another tensor of the same module"] = Bad(
            registered,
            lambda module, function=NAMED[name]: function(module, "bias"),
            ValueError,
            f"bias: {WITHOUT}, shape (3,), torch.float32",
        )
        rows[f"{name}: a pattern over what is not registered"] = Bad(
            linear,
            lambda module, function=NAMED[name]: function(module, "*"),
            ValueError,
            "'*': expected tensors with a negative diagonal in Linear, found no match; near "
            "names: weight, bias",
        )
    return rows


# A module, and a name in it.
NAMES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a module without tensors": (
        nn.ReLU,
        "weight",
        f"'weight': {EXPECTED} ReLU, found no match; near names: none, it has no tensors",
    ),
    "a bias that is none": (
        lambda: nn.Linear(2, 2, bias=False),
        "bias",
        f"'bias': {EXPECTED} Linear, found no match; near names: weight",
    ),
    "a pattern over vectors": (
        lambda: nn.LayerNorm(3),
        "*",
        "'*': expected tensors with a diagonal in LayerNorm, found no match; near names: weight, "
        "bias",
    ),
    "a name of nn.ModuleDict": (
        memory,
        "keys",
        "keys: expected a name that an nn.ModuleDict can hold, where parametrizations are kept, "
        "got 'keys', which is an attribute of it",
    ),
    "a weight that weight_norm has split": (
        lambda: quietly(lambda: nn.utils.weight_norm(linear())),
        "weight",
        f"'weight': {EXPECTED} Linear, found no match; near names: weight_v, weight_g",
    ),
}
ROWS: Table = _at_every_door() | {
    f"register_negative_diagonal: {label}": Bad(
        make,
        lambda module, name=name: register_negative_diagonal(module, name),
        ValueError,
        message,
    )
    for label, (make, name, message) in NAMES.items()
}
