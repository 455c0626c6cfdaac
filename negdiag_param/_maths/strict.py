"""A scalar map with a margin, strictly negative and finite in every floating dtype."""

from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor

from negdiag_param._maths.limits import FLOAT_DTYPES, Limits, widened
from negdiag_param._maths.scalar_map import ScalarMap

_STEPS = [0, *(sign * count for count in range(1, 11) for sign in (1, -1))]
_SMALL = 2**16  # entries, of which memory holds a score of copies


class StrictMap:
    """What the kernel puts on a diagonal, for every finite original.

    Args:
        scalar_map: the map, which is held within the limits of the dtype that stores the result.
        margin: the result is at most ``-margin``.
    """

    def __init__(self, scalar_map: ScalarMap, margin: float) -> None:
        self.scalar_map = scalar_map
        self.margin = margin
        #: Whether :meth:`value_and_slope`, :meth:`slope` and :meth:`smooth` are there.
        self.has_slope = scalar_map.has_slope
        #: Whether it is ``min(original, bound)``.
        self.is_projection = scalar_map.is_projection
        self._limits = _all_limits(margin)

    def value(self, original: Tensor) -> Tensor:
        """The mapped entries for the original ones, differentiable by autograd."""
        limits = self.limits(original.dtype)
        value = self.scalar_map.value(widened(original), limits)
        return value.clamp(limits.lowest, limits.bound).to(original.dtype)

    def value_and_slope(self, original: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped entries and the derivatives, in the dtype that arithmetic runs in."""
        limits = self.limits(original.dtype)
        value, slope = self.scalar_map.value_and_slope(widened(original), limits)
        return value.clamp_(limits.lowest, limits.bound), slope

    def slope(self, original: Tensor) -> Tensor:
        """The derivatives, differentiable by autograd."""
        return self.scalar_map.slope(widened(original), self.limits(original.dtype))

    def smooth(self, original: Tensor) -> Tensor:
        """A function with the derivatives of the map, finite in the dtype of its arithmetic."""
        return self.scalar_map.smooth(widened(original), self.limits(original.dtype))

    def inverse(self, entries: Tensor) -> Tensor:
        """The original entries that give the feasible ``entries``, or come nearest.

        What the map itself has made out of some original is hit exactly, so that a weight which is
        assigned to itself stays what it is.
        """
        limits = self.limits(entries.dtype)
        wide = self.scalar_map.inverse(widened(entries), limits)
        original = wide.to(entries.dtype)
        error = (self.value(original) - entries).abs()
        return self._nearer(wide, original, error, entries) if error.any() else original

    def _nearer(self, start: Tensor, best: Tensor, error: Tensor, entries: Tensor) -> Tensor:
        """``best`` or, where the ``error`` is smaller there, a neighbour of ``start``.

        The inverse is exact to a few roundings, of the value where that is flat and of the original
        where it is steep; the one it was made of is a few steps of either kind away.
        """
        eps = torch.finfo(entries.dtype).eps
        slope = self._steepness(start, self.limits(entries.dtype))
        # At most the distance of two originals; of two that the map tells apart and of two entries.
        fine = start.abs() * (eps / 2)
        apart = self.scalar_map.grain(start) * (torch.finfo(start.dtype).eps / 2)
        coarse = torch.maximum(fine, widened(entries).abs() * (eps / 4) / slope)
        between = torch.maximum(apart, (coarse * fine).sqrt())
        for step in (torch.maximum(apart, coarse), between, fine):
            for candidate, value in self._tried(start, step, entries):
                found = (value - entries).abs()
                best = torch.where(found < error, candidate, best)
                error = torch.minimum(found, error)
            start = widened(best)
        return best

    def _tried(
        self, start: Tensor, step: Tensor, entries: Tensor
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """The neighbours with their values; of a small tensor only the nearest to ``entries``."""
        if not self.has_slope or start.numel() > _SMALL:
            for count in _STEPS:
                candidate = (start + count * step).to(entries.dtype)
                yield candidate, self.value(candidate)
            return
        counts = torch.tensor(_STEPS, dtype=start.dtype, device=start.device)
        candidates = (start + counts.view(-1, *[1] * start.ndim) * step).to(entries.dtype)
        values = self.value(candidates)
        error = (values - entries).abs().nan_to_num(nan=torch.inf)
        nearest = error.argmin(0, keepdim=True)  # the first of several
        yield candidates.gather(0, nearest)[0], values.gather(0, nearest)[0]

    def _steepness(self, x: Tensor, limits: Limits) -> Tensor:
        """The size of the slope, roughly, and never zero."""
        if self.has_slope:
            slope = self.scalar_map.slope(x, limits)
        else:
            half = (1.0 + x.abs()) * torch.finfo(x.dtype).eps ** (1 / 3)
            value = self.scalar_map.value
            slope = (value(x + half, limits) - value(x - half, limits)) / (2.0 * half)
        return slope.abs().clamp(min=torch.finfo(torch.float32).tiny)

    def limits(self, dtype: torch.dtype) -> Limits:
        """What is feasible in ``dtype``.

        Raises:
            TypeError: if it is none of the four floating dtypes.
            ValueError: if the margin is too large for it.
        """
        limits = self._limits.get(dtype)
        return Limits.of(dtype, self.margin) if limits is None else limits


def _all_limits(margin: float) -> dict[torch.dtype, Limits]:
    """The limits in every dtype that can keep the margin."""
    found = {}
    for dtype in FLOAT_DTYPES:
        with suppress(ValueError):
            found[dtype] = Limits.of(dtype, margin)
    return found
