"""Minus a softplus."""

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from negdiag_param import _torch_private
from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap, distance, lowered, minus_abs

# Above it, log(1 + exp(x)) is x to the last bit of float64; below it, exp does not overflow.
_STRAIGHT = 40.0
_SMALL = 1e-20


class Softplus(ScalarMap):
    """``-(margin + log(1 + exp(beta x)) / beta)``."""

    name = "softplus"

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    @property
    @override
    def constants(self) -> Mapping[str, float]:
        return {} if self.beta == 1 else {"beta": self.beta}

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if _torch_private.is_exporting() or torch.onnx.is_in_onnx_export():
            # ONNX has an exact softplus, but no log1p.
            value = F.softplus(x, self.beta, _STRAIGHT).neg()
        else:
            value = self._minus_softplus(x)
        return lowered(value, limits)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        # With y = log(1 + exp(x)):
        #   x = log(exp(y) - 1)             overflows for large y, cancels for small
        #     = log(exp(y) (1 - exp(-y)))
        #     = y + log(-expm1(-y))         exact at both ends
        # and -expm1(-y) is y where y is small, whose logarithm keeps beta apart from what is tiny.
        y = distance(value, limits)
        logarithm = (self.beta * y).neg().expm1().neg().log()
        if self.beta != 1:
            logarithm = torch.where(y < _SMALL, y.log() + log(self.beta), logarithm)
        return y + logarithm / self.beta

    @override
    def grain(self, x: Tensor) -> Tensor:
        # exp(beta x) tells apart what differs by eps / 2 / beta, at best; as log1p and a margin
        # round it again, one of those may be the only one. Hence a quarter of that.
        return x.abs().clamp_min(0.25 / self.beta)

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        # -sigmoid(x) = -1 / (1 + exp(-x)) = -exp(x) / (1 + exp(x)): on either side the one where
        # nothing overflows or cancels
        z = (self.beta * minus_abs(x)).exp()
        return -torch.where(x > 0, 1.0, z) / (1.0 + z)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), where no derivative overflows
        return -x.relu() - (self.beta * minus_abs(x)).exp().log1p() / self.beta

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        value = self._minus_softplus(x)
        if torch.compiler.is_compiling():  # whose expm1 cancels near zero
            slope = self.slope(x, limits)
        else:
            # -sigmoid(x) = 1 / (1 + exp(x)) - 1 = exp(-softplus(x)) - 1, in a single pass
            slope = (value if self.beta == 1 else value * self.beta).expm1()
        return lowered(value, limits), slope

    def _minus_softplus(self, x: Tensor) -> Tensor:
        if self.beta == 1:
            return torch.maximum(x.clamp_max(_STRAIGHT).exp().log1p(), x).neg()
        curved = (self.beta * x).clamp_max(_STRAIGHT).exp().log1p() / self.beta
        return torch.maximum(curved, x).neg()
