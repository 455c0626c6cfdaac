"""What the kernel asks of a scalar map from the real line to the negative numbers.

A map works on tensors of any shape, entry by entry, in float32 or wider, and knows no matrices. Its
arithmetic uses only operations that round every entry alike, wherever it lies. PyTorch's
``softplus`` and ``sigmoid`` do not: the vectorised body and the scalar tail of their loops differ
in the last bits, and then a shard would not be a shard of the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from negdiag_param._maths.limits import Limits


class ScalarMap(ABC):
    """A map R -> (-inf, -margin] with its inverse, and its derivatives if it ``has_slope``."""

    has_slope: ClassVar[bool] = True
    #: Whether it is ``min(x, bound)``, so that originals beyond the bound may be set to it.
    is_projection: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What the map is called in checkpoints and messages."""

    @property
    def constants(self) -> Mapping[str, float]:
        """Those of its constants that are not the default, by their names."""
        return {}

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

    def grain(self, x: Tensor) -> Tensor:
        """The size of the numbers whose rounding makes neighbours of ``x`` the same to the map."""
        return x.abs()

    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        """The derivative, differentiable."""
        raise NotImplementedError

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        """A finite function of ``x`` whose derivatives of every order are the map's."""
        raise NotImplementedError

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """The mapped value and the derivative there, two new tensors, not differentiable."""
        return self.value(x, limits), self.slope(x, limits)


def distance(value: Tensor, limits: Limits) -> Tensor:
    """How far the feasible ``value`` lies below ``-margin``, and never zero."""
    return (-value - limits.margin).clamp(min=limits.nearest)


def lowered(value: Tensor, limits: Limits) -> Tensor:
    """``value`` less the margin."""
    return value - limits.margin if limits.margin else value


def minus_abs(x: Tensor) -> Tensor:
    """``-|x|``, with the derivative of its left side at zero."""
    return torch.where(x > 0, -x, x)


def distance_from_zero(x: Tensor) -> Tensor:
    """``|x|``, quickly where no derivative is asked for, and with one at zero where it is."""
    return -minus_abs(x) if x.requires_grad else x.abs()


def slope_of_even(x: Tensor, steepness: Tensor) -> Tensor:
    """The slope at ``x`` of a map of ``-|x|`` that is ``steepness`` > 0 steep there."""
    return steepness.copysign(0.0 - x)  # which is 0.0, and not -0.0, at either zero
