"""What is no initialiser, and initialisers that do not fill the tensor they are given."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import init_, register_negative_diagonal
from tests.bad_input.table import MATRIX, Bad, Table, registered
from tests.support.modules import linear


def _fails(tensor: Tensor) -> None:
    tensor.zero_()
    raise RuntimeError("stopped")


def _swaps(value: Tensor) -> Callable[[Tensor], None]:
    def initializer(tensor: Tensor) -> None:
        tensor.data = value

    return initializer


WANTED = f"weight: expected a tensor of {MATRIX} on cpu, got "
FINITE = f"weight: expected a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}"
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    **{
        label: (value, TypeError, f"initializer: expected a callable, got {type(value).__name__}")
        for label, value in {
            "none": None,
            "a name": "zeros_",
            "a number": 3,
            "a tensor": torch.ones(3, 3),
            "a list": [nn.init.zeros_],
        }.items()
    },
    "one that makes NaN": (lambda t: t.fill_(math.nan), ValueError, FINITE),
    "one that makes infinity": (lambda t: t.fill_(-math.inf), ValueError, FINITE),
    "one that resizes": (
        lambda t: t.resize_(2, 2),
        ValueError,
        f"{WANTED}shape (2, 2), torch.float32 on cpu",
    ),
    "one that swaps the shape": (
        _swaps(torch.ones(3, 2)),
        ValueError,
        f"{WANTED}shape (3, 2), torch.float32 on cpu",
    ),
    "one that swaps the dtype": (
        _swaps(torch.ones(3, 3).double()),
        ValueError,
        f"{WANTED}shape (3, 3), torch.float64 on cpu",
    ),
    "one that returns another tensor": (
        lambda t: -torch.ones(3, 3),
        ValueError,
        f"initializer: expected a callable that fills its tensor in place, got one that left it as "
        f"it was and returned another, {MATRIX}",
    ),
    "one that fails": (_fails, RuntimeError, "stopped"),
    "one without arguments": (
        lambda: None,
        TypeError,
        "...<lambda>() takes 0 positional arguments but 1 was given",
    ),
    "one of kernels": (
        nn.init.dirac_,
        ValueError,
        "Only tensors with 3, 4, or 5 dimensions are supported",
    ),
    "one that lacks an argument": (
        nn.init.constant_,
        TypeError,
        "constant_() missing 1 required positional argument: 'val'",
    ),
}
ROWS: Table = {
    **{
        f"init_: {label}": Bad(
            registered,
            lambda module, initializer=initializer: init_(module, "weight", initializer),
            error,
            message,
        )
        for label, (initializer, error, message) in BAD.items()
    },
    "init_: what the policy refuses": Bad(
        lambda: registered(infeasible="error"),
        lambda module: init_(module, "weight", nn.init.ones_),
        ValueError,
        f"weight: expected a negative diagonal, got 3 of 3 entries that are not, the largest 1; "
        f"got {MATRIX}",
    ),
    "init_: NaN in the second of two": Bad(
        lambda: register_negative_diagonal(nn.Sequential(linear(), linear()), "*.weight"),
        lambda model, values=(-3.0, math.nan): init_(
            model, "*.weight", lambda t, left=list(values): t.fill_(left.pop(0))
        ),
        ValueError,
        f"1.{FINITE}",
    ),
    "init_: one argument too many": Bad(
        registered,
        lambda module: init_(module, "weight", nn.init.zeros_, 3),
        TypeError,
        "zeros_() takes 1 positional argument but 2 were given",
    ),
    "init_: an unknown keyword": Bad(
        registered,
        lambda module: init_(module, "weight", nn.init.constant_, value=1.0),
        TypeError,
        "constant_() got an unexpected keyword argument 'value'",
    ),
}
