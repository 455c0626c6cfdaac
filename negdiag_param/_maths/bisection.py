"""Inverts a monotonic function to the last bit: bisection over the numbers of a dtype.

The bits of a floating-point number, read as an integer, are ordered as the numbers are (those of
negative numbers in reverse). Bisecting them visits every number of the dtype in as many steps as it
has bits, however flat or steep the function is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def nearest(
    function: Callable[[Tensor], Tensor], goal: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Where ``function``, monotonic from ``low`` to ``high``, is nearest to ``goal``.

    All are tensors of the same shape and dtype, searched entry by entry. Of several numbers that
    give ``goal`` it is the one nearest to zero.
    """
    sign = torch.where(function(high) < function(low), -1, 1)
    lowest, highest = below, above = rank(low), rank(high)
    for _ in range(8 * goal.dtype.itemsize):
        middle = (below & above) + ((below ^ above) >> 1)  # the mean, without overflow
        x = number(middle, goal.dtype)
        difference = (function(x) - goal) * sign
        # Where the function equals the goal, go on towards zero.
        goes_up = (difference < 0) | ((difference == 0) & (middle < 0))
        below, above = torch.where(goes_up, middle + 1, below), torch.where(goes_up, above, middle)
        below = torch.minimum(below, above)
    best = number(below, goal.dtype)
    error = (function(best) - goal).abs()
    for step in (-1, 1, -2):
        other = number((below + step).clamp(lowest, highest), goal.dtype)
        its = (function(other) - goal).abs()
        best, error = torch.where(its < error, other, best), torch.minimum(its, error)
    return best


def rank(numbers: Tensor) -> Tensor:
    """Integers that are ordered as the numbers are; those of both zeros are zero."""
    integer = _INTEGERS[numbers.dtype.itemsize]
    bits = numbers.contiguous().view(integer).long()
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def number(ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of ``dtype`` with these ranks."""
    integer = _INTEGERS[dtype.itemsize]
    return torch.where(ranks < 0, torch.iinfo(integer).min - ranks, ranks).to(integer).view(dtype)
