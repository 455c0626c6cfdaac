"""Scalar maps from the real line to the negative numbers. Nothing here knows matrices.

A map works on tensors of any shape, entry by entry, in float32 or wider. ``Limits`` says what
"strictly negative and at most ``-margin``" means in the floating dtype that stores the result.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ldexp, log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def widened(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype that its arithmetic runs in: float32 at least."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


@dataclass(frozen=True)
class Limits:
    """The bounds of a mapped value in one storage dtype, as Python floats that it represents."""

    margin: float
    lowest: float  # the most negative finite value
    bound: float  # the largest feasible value: <= -margin and < 0
    inside: float  # where an entry starts that reflection leaves at the boundary
    nearest: float  # the smallest distance to -margin that an inverse map starts from
    steepest: float  # the largest slope, so that gradients do not overflow

    @classmethod
    def of(cls, dtype: torch.dtype, margin: float) -> "Limits | None":
        """The limits in ``dtype``, or None if ``margin`` is too large for it."""
        info = torch.finfo(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        away = max(1e-3, 8 * info.eps * margin)
        if margin + away > info.max:
            return None
        # A distance of margin * eps / 8 is below half an ulp of margin, so -margin itself
        # goes through inverse and map unchanged.
        return cls(
            margin=margin,
            lowest=-info.max,
            bound=-_round_away(max(margin, _smallest_subnormal(dtype)), dtype),
            inside=-_round_away(margin + away, dtype),
            nearest=max(margin * info.eps / 8, _smallest_subnormal(wide)),
            # float16 has little room: slopes beyond 4094 saturate there.
            steepest=info.max * ldexp(1.0, -4 if dtype == torch.float16 else -20),
        )


def _smallest_subnormal(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def _round_away(value: float, dtype: torch.dtype) -> float:
    """The smallest number of ``dtype`` that is at least the positive ``value``."""
    rounded = torch.tensor(value, dtype=torch.float64, device="cpu").to(dtype)
    if rounded.item() < value:
        # Positive floats are ordered as their bits are.
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        rounded = (rounded.view(bits) + 1).view(dtype)
    return float(rounded.item())


class ScalarMap(ABC):
    """A map R -> (-inf, -margin] with its slope and inverse in closed form."""

    name: ClassVar[str]

    @abstractmethod
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        """The mapped value, which may still overflow ``limits``."""

    @abstractmethod
    def slope(self, x: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """The derivative at ``x``, where ``value`` was found."""

    @abstractmethod
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        """A finite function of ``x`` whose derivatives of every order are the map's."""

    @abstractmethod
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        """A finite ``x`` that maps to the feasible ``value``."""


class Exp(ScalarMap):
    """``-(margin + exp(x))``."""

    name = "exp"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        value = x.exp().neg()
        return value - limits.margin if limits.margin else value

    def slope(self, x: Tensor, value: Tensor, limits: Limits) -> Tensor:
        # Not value + margin, which is inexact where the margin is the larger part.
        if torch.is_grad_enabled() and x.requires_grad:
            # Capped before exp: the second derivative of an infinite exp would be NaN.
            return x.clamp(max=log(limits.steepest)).exp().neg()
        slope = x.exp().neg() if limits.margin else value
        return slope.clamp(min=-limits.steepest)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # Beyond the steepest slope the map goes on as a straight line. Only the slope of that
        # line counts; its value, which could overflow, is taken out.
        corner = log(limits.steepest)
        beyond = (x - corner).relu()
        return -x.clamp(max=corner).exp() - limits.steepest * (beyond - beyond.detach())

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return _distance(value, limits).log()


class Softplus(ScalarMap):
    """``-(margin + log(1 + exp(x)))``."""

    name = "softplus"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        # Above 40, log(1 + exp(x)) is x to the last bit of float64; below, exp does not overflow.
        positive = F.softplus(x, threshold=40.0)
        return -limits.margin - positive if limits.margin else positive.neg()

    def slope(self, x: Tensor, value: Tensor, limits: Limits) -> Tensor:
        # -sigmoid(x) = 1 / (1 + exp(x)) - 1 = exp(-softplus(x)) - 1, which costs one pass less
        return x.sigmoid().neg() if limits.margin else value.expm1()

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return F.softplus(x, threshold=40.0).neg()

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        # With y = log(1 + exp(x)):
        #   x = log(exp(y) - 1)             overflows for large y, cancels for small
        #     = log(exp(y) (1 - exp(-y)))
        #     = y + log(-expm1(-y))         exact at both ends
        y = _distance(value, limits)
        return y + y.neg().expm1().neg().log()


class SignFlip(ScalarMap):
    """``x`` where it is feasible, its reflection about ``-margin`` elsewhere."""

    name = "sign_flip"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if not limits.margin:
            return x.abs().neg()
        return torch.where(x > self._corner(limits), -2.0 * limits.margin - x, x)

    def slope(self, x: Tensor, value: Tensor, limits: Limits) -> Tensor:
        # The corner itself has the slope of the feasible side: there an entry is never stuck.
        return torch.where(x > self._corner(limits), -1.0, 1.0)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return torch.where(x > self._corner(limits), -x, x)

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value

    @staticmethod
    def _corner(limits: Limits) -> float:
        return limits.bound if limits.margin else 0.0


def _distance(value: Tensor, limits: Limits) -> Tensor:
    """How far the feasible ``value`` lies below ``-margin``, and never zero."""
    return (-value - limits.margin).clamp(min=limits.nearest)
