"""Minus an absolute value whose corner is rounded."""

from collections.abc import Mapping

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

# What is left of the slope at x = 0, so that no entry ever gets stuck there.
_LEAST = 0.01
# Beyond it the map and its inverse shift by a constant; below it, squares do not overflow.
_STRAIGHT = 2.0**60


class SmoothAbs(ScalarMap):
    """``-(margin + |x| (|x| + delta / 100) / (|x| + delta))``.

    With ``a = |x|`` and ``s = 1 / 100`` the distance from ``-margin`` is

        y     = a (a + s delta) / (a + delta)
        dy/da = 1 - (1 - s) (delta / (a + delta))^2      from s at 0 to 1 far out
    """

    name = "smooth_abs"

    def __init__(self, delta: float) -> None:
        self.delta = delta

    @property
    @override
    def constants(self) -> Mapping[str, float]:
        return {"delta": self.delta}

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return lowered(self._minus_distance(distance_from_zero(x)), limits)

    @override
    def centre(self, limits: Limits) -> float:
        return 0.0

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        # a^2 - b a - y delta = 0 with b = y - s delta; of its two forms the one that adds.
        y = distance(value, limits)
        near = y.clamp(max=_STRAIGHT)
        b = near - _LEAST * self.delta
        larger = (b.abs() + (b.square() + 4.0 * self.delta * near).sqrt()) / 2.0
        a = torch.where(b > 0, larger, self.delta * near / larger)
        return -(a + (y - near))

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        ratio = self.delta / (minus_abs(x) - self.delta)
        return slope_of_even(x, 1.0 - (1.0 - _LEAST) * ratio.square())

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # y = a - (1 - s) delta a / (a + delta), up to a constant, has no product of large numbers
        below = minus_abs(x)
        return below + (1.0 - _LEAST) * self.delta * (self.delta / (below - self.delta))

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        a = x.abs()
        below = torch.rsub(a, -self.delta)
        value = (a + _LEAST * self.delta).div_(below).mul_(a)
        factor = -(1.0 - _LEAST) * self.delta**2
        slope = slope_of_even(x, below.square_().reciprocal_().mul_(factor).add_(1.0))
        return lowered(value, limits), slope

    def _minus_distance(self, a: Tensor) -> Tensor:
        return (a + _LEAST * self.delta) / torch.rsub(a, -self.delta) * a
