"""Scalar maps from the real line to the negative numbers, strict in every floating dtype.

A map works entry by entry, in float32 or wider, and uses only operations that round an entry in the
same way wherever it lies. PyTorch's ``softplus`` and ``sigmoid`` do not: the vectorised body and
the scalar tail of their loops differ in the last bits, so the weight of a shard would differ from
that part of the whole weight.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor

from negdiag_param._maths.limits import FLOAT_DTYPES, Limits, below, number, rank, widened


class ScalarMap(ABC):
    """A map R -> (-inf, -margin], with its derivatives if it ``has_slope``."""

    name: str  # in checkpoints and messages
    constants: Mapping[str, float] = {}  # those that differ from their defaults
    has_slope: ClassVar[bool] = True
    #: Whether it is ``min(x, bound)``, so that originals beyond the bound may be set to it.
    is_projection: ClassVar[bool] = False

    def sampled(self) -> tuple[float, ...]:
        """Some of its values, if the name does not identify the map."""
        return ()

    @abstractmethod
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        """The mapped value, which may still overflow ``limits``.

        It has to be differentiable by autograd only if the map does not come with a slope.
        """

    def inverse(self, value: Tensor, limits: Limits) -> Tensor | None:
        """An ``x`` that maps to the feasible ``value``; None if it has to be searched for."""
        return None

    def highest(self, limits: Limits) -> float:
        """The largest original that assignments lead to; the map is monotonic up to there."""
        return -limits.lowest

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        """A finite function of ``x`` whose derivatives of every order are the map's."""
        raise NotImplementedError

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """The mapped value and the derivative there, two new tensors, not differentiable."""
        raise NotImplementedError


class StrictMap:
    """A scalar map, at most ``-margin`` and within what the dtype of the result can represent."""

    def __init__(self, scalar_map: ScalarMap, margin: float) -> None:
        self.scalar_map = scalar_map
        self.margin = margin
        self.has_slope = scalar_map.has_slope
        self.is_projection = scalar_map.is_projection
        self._limits: dict[torch.dtype, Limits] = {}
        for dtype in FLOAT_DTYPES:
            with suppress(ValueError):  # a dtype that cannot keep the margin; limits() says so
                self._limits[dtype] = Limits.of(dtype, margin)

    def limits(self, dtype: torch.dtype) -> Limits:
        """What is feasible in ``dtype``."""
        return self._limits.get(dtype) or Limits.of(dtype, self.margin)

    def value(self, original: Tensor) -> Tensor:
        """The mapped entries in the dtype that arithmetic runs in, differentiable by autograd."""
        limits = self.limits(original.dtype)
        value = self.scalar_map.value(widened(original), limits)
        return value.clamp(limits.lowest, limits.bound)

    def value_and_slope(self, original: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped entries and the derivatives, in the dtype that arithmetic runs in."""
        limits = self.limits(original.dtype)
        value, slope = self.scalar_map.value_and_slope(widened(original), limits)
        return value.clamp_(limits.lowest, limits.bound), slope

    def mapped(self, original: Tensor) -> Tensor:
        """The mapped entries in their own dtype, differentiable to any order."""
        dtype = original.dtype
        if torch.onnx.is_in_onnx_export() or not self.has_slope:
            return self.value(original).to(dtype)
        # Straight-through: the strict value, with the derivatives of the smooth function.
        smooth = self.scalar_map.smooth(widened(original), self.limits(dtype))
        return self.value(original.detach()).to(dtype) + (smooth - smooth.detach()).to(dtype)

    def inverse(self, entries: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The originals that give the feasible ``entries``, or come nearest.

        With ``sizes``, those whose values give them when lowered by as much. An entry that was
        computed from some original is reached exactly, so that a weight which is assigned to itself
        keeps its bits.
        """
        limits, goal = self.limits(entries.dtype), widened(entries)

        def function(x: Tensor) -> Tensor:
            value = self.value(x).to(x.dtype)
            return value if sizes is None else below(value, sizes, limits)

        if sizes is not None:
            goal = (goal + sizes).clamp(max=limits.bound)
        ends = limits.lowest, self.scalar_map.highest(limits)
        low, high = (torch.full_like(entries, end) for end in ends)
        start = self.scalar_map.inverse(goal, limits)
        if start is None:
            return _nearest(function, entries, low, high)
        original = start.to(entries.dtype)
        missed = function(original) != entries
        if not missed.any():
            return original
        if not self.has_slope:
            # A user's map may be monotonic only near the inverse, which has rounding errors.
            reach = torch.finfo(entries.dtype).eps ** 0.5 * (1 + start.abs())
            low, high = ((start + side).clamp(*ends).to(entries.dtype) for side in (-reach, reach))
        found = _nearest(function, entries, low, high)
        return torch.where(missed & (function(found) == entries), found, original)


def _nearest(
    function: Callable[[Tensor], Tensor], goal: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Where ``function``, monotonic from ``low`` to ``high``, is nearest to ``goal``.

    All are tensors of the same shape and dtype, searched entry by entry, by bisection over the
    numbers of the dtype: in as many steps as it has bits, however flat or steep the function is.
    Of several numbers that give ``goal`` it is the one nearest to zero.
    """
    sign = torch.where(function(high) < function(low), -1, 1)
    lowest, highest = left, right = rank(low), rank(high)
    for _ in range(8 * goal.dtype.itemsize):
        middle = (left & right) + ((left ^ right) >> 1)  # the mean, without overflow
        x = number(middle, goal.dtype)
        difference = (function(x) - goal) * sign
        # Where the function equals the goal, go on towards zero.
        goes_up = (difference < 0) | ((difference == 0) & (middle < 0))
        left, right = torch.where(goes_up, middle + 1, left), torch.where(goes_up, right, middle)
    best, error = goal, torch.full_like(goal, torch.inf)
    for step in (0, -1, 1, -2):
        x = number((left + step).clamp(lowest, highest), goal.dtype)
        its = (function(x) - goal).abs()
        best, error = torch.where(its < error, x, best), torch.minimum(its, error)
    return best
