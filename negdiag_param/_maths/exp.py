"""Minus an exponential."""

from math import log

from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap, distance, lowered


class Exp(ScalarMap):
    """``-(margin + exp(x))``."""

    name = "exp"

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return lowered(x.exp().neg(), limits)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return distance(value, limits).log()

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        # Capped before exp: the second derivative of an infinite exp would be NaN.
        return x.clamp(max=log(limits.steepest)).exp().neg()

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # Beyond the steepest slope the map goes on as a straight line. Only the slope of that
        # line counts; its value, which could overflow, is taken out.
        corner = log(limits.steepest)
        beyond = (x - corner).relu()
        return -x.clamp(max=corner).exp() - limits.steepest * (beyond - beyond.detach())

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        # The slope is not value + margin, which is inexact where the margin is the larger part.
        value = x.exp().neg_()
        slope = value.clamp(min=-limits.steepest)
        return lowered(value, limits), slope
