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
    """Where ``function`` is nearest to ``goal`` between ``low`` and ``high``, entry by entry.

    Of several numbers that give ``goal`` it is the one nearest to zero.

    Args:
        function: a function of tensors of ``goal``'s shape and dtype, monotonic on the interval.
        goal: the values to reach.
        low: the lower ends of the interval.
        high: the upper ends.
    """
    sign = torch.where(function(high) < function(low), -1, 1)
    below, above = _rank(low), _rank(high)
    for _ in range(8 * goal.dtype.itemsize):
        middle = (below & above) + ((below ^ above) >> 1)  # the mean, without overflow
        x = _number(middle, goal.dtype)
        difference = (function(x) - goal) * sign
        # Where the function reaches the goal, towards zero.
        goes_up = (difference < 0) | ((difference == 0) & (middle < 0))
        below, above = torch.where(goes_up, middle + 1, below), torch.where(goes_up, above, middle)
        below = torch.minimum(below, above)
    best = _number(below, goal.dtype)
    error = (function(best) - goal).abs()
    for step in (-1, 1, -2):
        other = _number((below + step).clamp(_rank(low), _rank(high)), goal.dtype)
        found = (function(other) - goal).abs()
        best, error = torch.where(found < error, other, best), torch.minimum(found, error)
    return best


def _rank(number: Tensor) -> Tensor:
    """Integers that are ordered as the numbers are; those of both zeros are zero."""
    bits = number.contiguous().view(_INTEGERS[number.dtype.itemsize]).long()
    return torch.where(bits < 0, _lowest(number.dtype) - bits, bits)


def _number(rank: Tensor, dtype: torch.dtype) -> Tensor:
    bits = torch.where(rank < 0, _lowest(dtype) - rank, rank)
    return bits.to(_INTEGERS[dtype.itemsize]).view(dtype)


def _lowest(dtype: torch.dtype) -> int:
    return torch.iinfo(_INTEGERS[dtype.itemsize]).min
