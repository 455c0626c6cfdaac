"""What a row of bad input is, and tensors that are no weights."""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.support.modules import linear


class Bad(NamedTuple):
    """What is made, what is done with it, and the error: exactly its type and its message.

    Three dots in the message stand for anything.
    """

    make: Callable[[], Any]
    call: Callable[[Any], object]
    error: type[Exception]
    message: str

    def fits(self, message: str) -> bool:
        pattern = re.escape(self.message).replace(r"\.\.\.", ".*")
        return re.fullmatch(pattern, message, re.DOTALL) is not None


Table = dict[str, Bad]
# Bad values, by what they are, with the error and its message.
Values = Mapping[str, tuple[Any, type[Exception], str]]


def given(
    where: str, make: Callable[[], Any], call: Callable[[Any, Any], object], values: Values
) -> Table:
    """Rows for what is made and then given a bad value."""
    return {
        f"{where}: {label}": Bad(make, lambda made, bad=bad: call(made, bad), error, message)
        for label, (bad, error, message) in values.items()
    }


def saying(values: Values, before: str) -> Values:
    """The same with more words before each message."""
    return {k: (bad, error, before + message) for k, (bad, error, message) in values.items()}


def alike(values: Mapping[str, Any], error: type[Exception], message: str) -> Values:
    """With one message for all."""
    return {label: (bad, error, message) for label, bad in values.items()}


def by_type(message: str, *values: Any) -> Values:
    """With one message for all, which ends with the name of the type."""
    names = [type(bad).__name__ for bad in values]
    return {n: (bad, TypeError, message + n) for n, bad in zip(names, values, strict=True)}


def quietly(make: Callable[[], Any]) -> Any:
    """Without what PyTorch says of features that it has not finished or is giving up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def holding(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    if isinstance(tensor, nn.Parameter):
        module.weight = tensor
    else:
        module.register_buffer("weight", tensor)
    return module


def registered(**options: Any) -> nn.Module:
    return register_negative_diagonal(linear(-2.0), **{"map": "exp", **options})


def assign(module: nn.Module, value: Any) -> None:
    module.weight = value


ONES = torch.ones(3, 3)
MATRIX = "shape (3, 3), torch.float32"
WANTED = f"weight: expected a tensor of {MATRIX} on cpu, got "
FLOATING = "float16, bfloat16, float32 or float64"
LAZY = "expected an initialized tensor, got UninitializedParameter; run the lazy module once first"
NOT_FINITE_MESSAGE = f"expected a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}"
NOT_NEGATIVE = "a negative diagonal, got {} of 3 entries that are not, the largest {}"

NOT_TENSORS = by_type("expected a tensor, got ", None, -1.0, "x", [[-1.0]], ONES.numpy())
# Which have no diagonal of real numbers.
NOT_DENSE: Values = {
    label: (quietly(make), TypeError, f"expected a dense tensor, got {found}")
    for label, make, found in [
        ("sparse", ONES.to_sparse, f"{MATRIX}, layout torch.sparse_coo"),
        ("compressed rows", ONES.to_sparse_csr, f"{MATRIX}, layout torch.sparse_csr"),
        ("compressed columns", ONES.to_sparse_csc, f"{MATRIX}, layout torch.sparse_csc"),
        ("mkldnn", ONES.to_mkldnn, f"{MATRIX}, layout torch._mkldnn"),
        (
            "quantized",
            lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8),
            "shape (3, 3), torch.qint8, layout torch.strided (quantized)",
        ),
        *(
            (
                label,
                lambda layout=layout: torch.nested.nested_tensor([ONES, ONES], layout=layout),
                "a nested one, torch.float32",
            )
            for label, layout in (("nested", torch.strided), ("jagged", torch.jagged))
        ),
    ]
}
UNINITIALIZED: Values = {"a lazy parameter": (nn.UninitializedParameter(), TypeError, LAZY)}
DTYPES = [torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex32]
DTYPES += [torch.float8_e4m3fn]
NOT_FLOATING: Values = {
    str(dtype): (
        quietly(lambda dtype=dtype: ONES.to(dtype)),
        TypeError,
        f"expected {FLOATING}, got shape (3, 3), {dtype}",
    )
    for dtype in DTYPES
}
NOT_FINITE = alike(
    {str(value): ONES * value for value in (math.nan, math.inf, -math.inf)},
    ValueError,
    NOT_FINITE_MESSAGE,
)
# With infeasible="error" and these options.
INFEASIBLE: dict[str, tuple[dict[str, Any], Tensor, str]] = {
    "a zero": ({}, 0 * ONES, NOT_NEGATIVE.format(3, 0)),
    "one positive entry": (
        {},
        torch.diag(torch.tensor([-1.0, 2.0, -3.0])),
        NOT_NEGATIVE.format(1, 2),
    ),
    "an entry inside the margin": (
        {"margin": 1.5},
        torch.eye(3) - 2 * ONES,
        "a diagonal of at most -1.5, got 3 of 3 entries that are not, the largest -1",
    ),
}
