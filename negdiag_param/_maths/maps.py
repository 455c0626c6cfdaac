"""Scalar maps from the real line to the negative numbers. Nothing here knows matrices.

A map works on tensors of any shape, entry by entry, in float32 or wider. Its arithmetic uses only
operations that round every entry alike, wherever it lies. PyTorch's ``softplus`` and ``sigmoid``
do not: the vectorised body and the scalar tail of their loops differ in the last bits, and then
a shard would not be a shard of the whole.
"""

from abc import ABC, abstractmethod
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from negdiag_param._maths.limits import Limits

# Above it, log(1 + exp(x)) is x to the last bit of float64; below it, exp does not overflow.
_STRAIGHT = 40.0


class ScalarMap(ABC):
    """A map R -> (-inf, -margin] with its inverse, and its derivatives if it ``has_slope``."""

    has_slope: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """What the map is called in checkpoints and messages."""

    def sampled(self) -> tuple[float, ...]:
        """Some of its values, if the name does not tell all of what it is."""
        return ()

    @abstractmethod
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        """The mapped value, which may still overflow ``limits``.

        Differentiable where :meth:`smooth` is not there, and while exporting.
        """

    @abstractmethod
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        """A finite ``x`` that maps to the feasible ``value``."""

    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        """The derivative, differentiable."""
        raise NotImplementedError

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        """A finite function of ``x`` whose derivatives of every order are the map's."""
        raise NotImplementedError

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """The mapped value and the derivative there, two new tensors, not differentiable."""
        return self.value(x, limits), self.slope(x, limits)


class Exp(ScalarMap):
    """``-(margin + exp(x))``."""

    name = "exp"

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        value = x.exp().neg()
        return value - limits.margin if limits.margin else value

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return _distance(value, limits).log()

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
        return (value.sub_(limits.margin) if limits.margin else value), slope


class Softplus(ScalarMap):
    """``-(margin + log(1 + exp(x)))``."""

    name = "softplus"

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            # ONNX has an exact softplus, but no log1p.
            value = F.softplus(x, threshold=_STRAIGHT).neg()
        else:
            value = _minus_softplus(x)
        return value - limits.margin if limits.margin else value

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        # With y = log(1 + exp(x)):
        #   x = log(exp(y) - 1)             overflows for large y, cancels for small
        #     = log(exp(y) (1 - exp(-y)))
        #     = y + log(-expm1(-y))         exact at both ends
        y = _distance(value, limits)
        return y + y.neg().expm1().neg().log()

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        # -sigmoid(x) = -1 / (1 + exp(-x)) = -exp(x) / (1 + exp(x)): on either side the one where
        # nothing overflows or cancels
        z = _minus_abs(x).exp()
        return -torch.where(x > 0, 1.0, z) / (1.0 + z)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), where no derivative overflows
        return -x.relu() - _minus_abs(x).exp().log1p()

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        value = _minus_softplus(x)
        # -sigmoid(x) = 1 / (1 + exp(x)) - 1 = exp(-softplus(x)) - 1, in a single pass; but the
        # expm1 of the compiler cancels near zero.
        slope = self.slope(x, limits) if torch.compiler.is_compiling() else value.expm1()
        return (value.sub_(limits.margin) if limits.margin else value), slope


class SignFlip(ScalarMap):
    """``x`` where it is feasible, its reflection about ``-margin`` elsewhere."""

    name = "sign_flip"

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if not limits.margin:
            return x.abs().neg()
        return torch.where(x > limits.bound, -2.0 * limits.margin - x, x)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        return torch.where(self._is_reflected(x, limits), -1.0, 1.0)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return torch.where(self._is_reflected(x, limits), -x, x)

    @staticmethod
    def _is_reflected(x: Tensor, limits: Limits) -> Tensor:
        # The corner itself has the slope of the feasible side: there an entry is never stuck.
        return x > (limits.bound if limits.margin else 0.0)


def _distance(value: Tensor, limits: Limits) -> Tensor:
    """How far the feasible ``value`` lies below ``-margin``, and never zero."""
    return (-value - limits.margin).clamp(min=limits.nearest)


def _minus_softplus(x: Tensor) -> Tensor:
    return torch.maximum(x.clamp_max(_STRAIGHT).exp().log1p(), x).neg()


def _minus_abs(x: Tensor) -> Tensor:
    """``-|x|``, with the derivative of its left side at zero."""
    return torch.where(x > 0, -x, x)
