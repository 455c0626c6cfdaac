"""What is no initialiser, and initialisers that do not fill the tensor they are given."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from negdiag_param import init_, register_negative_diagonal
from tests.bad_input.table import (
    MATRIX,
    NOT_FINITE_MESSAGE,
    Bad,
    Table,
    Values,
    by_type,
    given,
    registered,
)
from tests.support.modules import linear


def _fails(tensor: Tensor) -> None:
    tensor.zero_()
    raise RuntimeError("stopped")


def _swaps(value: Tensor) -> Callable[[Tensor], None]:
    def initializer(tensor: Tensor) -> None:
        tensor.data = value

    return initializer


WANTED = f"weight: expected a tensor of {MATRIX} on cpu, got "
FINITE = f"weight: {NOT_FINITE_MESSAGE}"
SHAPE = f"{WANTED}shape (3, 2), torch.float32 on cpu"
BAD: Values = {
    **by_type(
        {
            "none": None,
            "a name": "zeros_",
            "a number": 3,
            "a tensor": torch.ones(3, 3),
            "a list": [nn.init.zeros_],
        },
        "initializer: expected a callable, got ",
    ),
    "one that makes NaN": (lambda t: t.fill_(math.nan), ValueError, FINITE),
    "one that makes infinity": (lambda t: t.fill_(-math.inf), ValueError, FINITE),
    "one that resizes": (lambda t: t.resize_(3, 2), ValueError, SHAPE),
    "one that swaps the shape": (_swaps(torch.ones(3, 2)), ValueError, SHAPE),
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
}
ROWS: Table = {
    **given("init_", registered, lambda module, bad: init_(module, "weight", bad), BAD),
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
}
