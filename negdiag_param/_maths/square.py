"""Minus a square."""

from math import sqrt

import torch
from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import (
    ScalarMap,
    distance,
    distance_from_zero,
    lowered,
    minus_abs,
    slope_of_even,
)

# The slope at x = 0, so that no entry ever gets stuck there.
_LEAST = 0.01


class Square(ScalarMap):
    """``-(margin + |x| (|x| + 1 / 100))``."""

    name = "square"

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return lowered(_minus_distance(distance_from_zero(x)), limits)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        # a^2 + s a - y = 0, solved without a difference
        y = distance(value, limits)
        half = _LEAST / 2.0
        return -y / (half + (half * half + y).sqrt())

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        a = -minus_abs(x).clamp(min=-_corner(limits))
        return slope_of_even(x, 2.0 * a + _LEAST)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # Beyond the corner the map goes on as a straight line, of which only the slope counts.
        corner = _corner(limits)
        below = minus_abs(x)
        beyond = (below + corner).clamp(max=0.0)
        line = (2.0 * corner + _LEAST) * (beyond - beyond.detach())
        return _minus_distance(-below.clamp(min=-corner)) + line

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        a = x.abs()
        value = torch.rsub(a, -_LEAST).mul_(a)
        slope = slope_of_even(x, a.clamp_(max=_corner(limits)).mul_(2.0).add_(_LEAST))
        return lowered(value, limits), slope


def _minus_distance(a: Tensor) -> Tensor:
    return torch.rsub(a, -_LEAST) * a


def _corner(limits: Limits) -> float:
    """Where the value is half the largest one; the slope stays what it is there."""
    return sqrt(-limits.lowest / 2.0)
