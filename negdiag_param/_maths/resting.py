"""A map whose original counts from a chosen diagonal entry."""

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap


class Resting(ScalarMap):
    """``map(x + shift)``, with the shift that maps 0 to ``rest``.

    Args:
        inner: the map, one that ``has_slope``.
        rest: a feasible value.
        margin: that of the diagonal.
    """

    def __init__(self, inner: ScalarMap, rest: float, margin: float) -> None:
        self.inner = inner
        value = torch.tensor(rest, dtype=torch.float64, device="cpu")
        self._shift = inner.inverse(value, Limits.of(torch.float64, margin)).item()

    @property
    @override
    def name(self) -> str:
        return self.inner.name

    @property
    @override
    def constants(self) -> Mapping[str, float]:
        return self.inner.constants

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return self.inner.value(self._argument(x), limits)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return self.inner.inverse(value, limits) - self._shift

    @override
    def grain(self, x: Tensor) -> Tensor:
        return self.inner.grain(self._argument(x))

    @override
    def mirrored(self, x: Tensor, limits: Limits) -> Tensor | None:
        # The shift rounds them differently.
        centre = self.inner.centre(limits)
        return None if centre is None else 2.0 * (centre - self._shift) - x

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        return self.inner.slope(self._argument(x), limits)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return self.inner.smooth(self._argument(x), limits)

    @override
    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        return self.inner.value_and_slope(self._argument(x), limits)

    def _argument(self, x: Tensor) -> Tensor:
        return x + self._shift
