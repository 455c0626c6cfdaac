"""Values that a registered tensor does not take, by any way that sets it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import remove_negative_diagonal
from tests.bad_input.table import (
    MATRIX,
    NOT_DENSE,
    NOT_FLOATING,
    ONES,
    Bad,
    Table,
    quietly,
    registered,
)

WANTED = f"weight: expected a tensor of {MATRIX} on cpu, got "
SHAPES = {
    "another shape": (3, 2),
    "a smaller matrix": (2, 2),
    "a flat tensor": (9,),
    "a batch": (1, 3, 3),
    "a scalar": (),
    "a row": (1, 3),
}
VALUES: dict[str, tuple[Any, type[Exception], str]] = {
    **{
        label: (-torch.ones(shape), ValueError, f"{WANTED}shape {shape}, torch.float32 on cpu")
        for label, shape in SHAPES.items()
    },
    **{
        label: (
            quietly(lambda dtype=dtype: ONES.to(dtype)),
            ValueError,
            f"{WANTED}shape (3, 3), {dtype} on cpu",
        )
        for label, dtype in {
            **NOT_FLOATING,
            "half floats": torch.float16,
            "brain floats": torch.bfloat16,
            "doubles": torch.float64,
        }.items()
    },
    **{
        f"{label} tensor": (tensor, TypeError, f"weight: expected a dense tensor, got {found}")
        for label, (tensor, found) in NOT_DENSE.items()
    },
    "a meta tensor": (ONES.to("meta"), ValueError, f"{WANTED}{MATRIX} on meta"),
    "a lazy parameter": (
        nn.UninitializedParameter(),
        TypeError,
        "weight: expected an initialized tensor, got UninitializedParameter; run the lazy module "
        "once first",
    ),
    "a parameter of another shape": (
        nn.Parameter(torch.ones(3, 2)),
        ValueError,
        f"{WANTED}shape (3, 2), torch.float32 on cpu",
    ),
    **{
        label: (value, TypeError, f"weight: expected a tensor, got {type(value).__name__}")
        for label, value in {
            "none": None,
            "a number": -1.0,
            "text": "x",
            "lists": [[-1.0]],
            "an array": ONES.numpy(),
        }.items()
    },
    **{
        label: (
            torch.full((3, 3), value),
            ValueError,
            f"weight: expected a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}",
        )
        for label, value in {"NaN": math.nan, "infinity": math.inf, "minus that": -math.inf}.items()
    },
    "NaN and infeasible": (
        torch.tensor([[math.nan, 0, 0], [0, 1, 0], [0, 0, -1]]),
        ValueError,
        f"weight: expected a finite diagonal, got 1 of 3 entries NaN or infinite; got {MATRIX}",
    ),
}
POLICY = {
    "a zero": (
        {},
        torch.zeros(3, 3),
        "a negative diagonal, got 3 of 3 entries that are not, the largest 0",
    ),
    "one positive entry": (
        {},
        torch.diag(torch.tensor([-1.0, 2.0, -3.0])),
        "a negative diagonal, got 1 of 3 entries that are not, the largest 2",
    ),
    "an entry inside the margin": (
        {"margin": 1.5},
        -2 * ONES + torch.eye(3),
        "a diagonal of at most -1.5, got 3 of 3 entries that are not, the largest -1",
    ),
}


def assign(module: nn.Module, value: Any) -> None:
    module.weight = value


def register_parameter(module: nn.Module, value: Any) -> None:
    module.register_parameter("weight", value)


def as_parameter(module: nn.Module, value: Tensor) -> None:
    module.weight = nn.Parameter(value)


def strictly(**options: Any) -> Callable[[], nn.Module]:
    return lambda: registered(infeasible="error", **options)


ROWS: Table = {
    **{
        f"layer.weight: {label}": Bad(
            registered, lambda module, value=value: assign(module, value), error, message
        )
        for label, (value, error, message) in VALUES.items()
    },
    **{
        f"register_parameter: {label}": Bad(
            registered,
            lambda module, value=value: register_parameter(module, value),
            error,
            message,
        )
        for label, (value, error, message) in VALUES.items()
        if value is not None
    },
    **{
        f"layer.weight: {label}, {way.__name__}": Bad(
            strictly(**options),
            lambda module, way=way, value=value: way(module, value),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for label, (options, value, message) in POLICY.items()
        for way in (assign, as_parameter)
    },
    "remove_negative_diagonal: twice": Bad(
        lambda: remove_negative_diagonal(registered()),
        remove_negative_diagonal,
        ValueError,
        f"weight: expected a tensor registered with a negative diagonal, got one without, {MATRIX}",
    ),
}
