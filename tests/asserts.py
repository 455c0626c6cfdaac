"""The properties, by name."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_negative(diagonal: Tensor, margin: float = 0.0) -> None:
    exact = diagonal.detach().double()
    assert exact.isfinite().all(), diagonal
    assert (diagonal < 0).all(), diagonal
    assert (exact <= -margin).all(), (diagonal, margin)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal, where 0.0 and -0.0 differ and NaN equals itself."""
    assert actual.dtype == expected.dtype
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.dtype.itemsize]
    assert torch.equal(
        actual.detach().contiguous().view(bits), expected.detach().contiguous().view(bits)
    )


def assert_only_diagonal_differs(
    actual: Tensor, expected: Tensor, where: Callable[[Tensor], Tensor]
) -> None:
    """``where`` gives the diagonal of a tensor, as a view."""
    blank = []
    for tensor in (actual, expected):
        clone = tensor.detach().clone()
        where(clone).zero_()
        blank.append(clone)
    assert_same_bits(*blank)


def distance_in_eps(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error, in units of the dtype's eps."""
    error = (actual.detach().double() - expected.double()).abs() / expected.double().abs()
    return error.max().item() / torch.finfo(actual.dtype).eps
