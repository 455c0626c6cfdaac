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
from tests.bad_input.table import KINDS, Bad, Table, quietly, registered
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
NO_MODULE: dict[str, tuple[Any, str]] = {
    label: (value, type(value).__name__) for label, value in KINDS.items()
} | {"a class": (nn.Linear, "type"), "a tensor": (torch.ones(2), "Tensor")}
NO_NAME = {"none": None, "a number": 3, "bytes": b"weight", "a list": ["weight"]}
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


def _no_module() -> Table:
    functions = [(*item, "module") for item in NAMED.items()]
    functions += [(*item, "model") for item in OF_A_MODEL.items()]
    return {
        f"{name}: {label} as module": Bad(
            lambda value=value: value,
            function,
            TypeError,
            f"{argument}: expected an nn.Module, got {kind}",
        )
        for name, function, argument in functions
        for label, (value, kind) in NO_MODULE.items()
    }


def _no_name() -> Table:
    return {
        f"{name}: {label} as name": Bad(
            registered,
            lambda module, function=function, bad=bad: function(module, bad),
            TypeError,
            f"tensor_name: expected a string, got {type(bad).__name__}",
        )
        for name, function in NAMED.items()
        for label, bad in NO_NAME.items()
    }


def _unknown() -> Table:
    return {
        f"{name}: a name {label}": Bad(
            linear if function is register_negative_diagonal else registered,
            lambda module, function=function, bad=bad: function(module, bad),
            ValueError,
            f"{bad!r}: expected the name of a parameter or buffer in "
            f"{'' if function is register_negative_diagonal else 'Parametrized'}Linear, found no "
            f"match; near names: {near}",
        )
        for name, function in NAMED.items()
        for label, (bad, near) in UNKNOWN.items()
    }


def _unregistered() -> Table:
    rows: Table = {}
    for name in ("remove_negative_diagonal", "init_"):
        rows[f"{name}: a tensor that is not registered"] = Bad(
            linear,
            NAMED[name],
            ValueError,
            "weight: expected a tensor registered with a negative diagonal, got one without, "
            "shape (3, 3), torch.float32",
        )
        rows[f"{name}: another tensor of the same module"] = Bad(
            registered,
            lambda module, function=NAMED[name]: function(module, "bias"),
            ValueError,
            "bias: expected a tensor registered with a negative diagonal, got one without, "
            "shape (3,), torch.float32",
        )
        rows[f"{name}: a pattern over what is not registered"] = Bad(
            linear,
            lambda module, function=NAMED[name]: function(module, "*"),
            ValueError,
            "'*': expected tensors with a negative diagonal in Linear, found no match; near "
            "names: weight, bias",
        )
    return rows


ROWS: Table = {
    **_no_module(),
    **_no_name(),
    **_unknown(),
    **_unregistered(),
    "register_negative_diagonal: a module without tensors": Bad(
        nn.ReLU,
        register_negative_diagonal,
        ValueError,
        "'weight': expected the name of a parameter or buffer in ReLU, found no match; near "
        "names: none, it has no tensors",
    ),
    "register_negative_diagonal: a bias that is none": Bad(
        lambda: nn.Linear(2, 2, bias=False),
        lambda module: register_negative_diagonal(module, "bias"),
        ValueError,
        "'bias': expected the name of a parameter or buffer in Linear, found no match; near "
        "names: weight",
    ),
    "register_negative_diagonal: a pattern over vectors": Bad(
        lambda: nn.LayerNorm(3),
        lambda module: register_negative_diagonal(module, "*"),
        ValueError,
        "'*': expected tensors with a diagonal in LayerNorm, found no match; near names: weight, "
        "bias",
    ),
    "register_negative_diagonal: a name of nn.ModuleDict": Bad(
        memory,
        lambda module: register_negative_diagonal(module, "keys"),
        ValueError,
        "keys: expected a name that an nn.ModuleDict can hold, where parametrizations are kept, "
        "got 'keys', which is an attribute of it",
    ),
    "register_negative_diagonal: a weight that weight_norm has split": Bad(
        lambda: quietly(lambda: nn.utils.weight_norm(linear())),
        register_negative_diagonal,
        ValueError,
        "'weight': expected the name of a parameter or buffer in Linear, found no match; near "
        "names: weight_v, weight_g",
    ),
}
