"""The smaller of the original and the bound."""

import torch
from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap


class Clamp(ScalarMap):
    """``min(x, bound)``, whose slope counts as 1 for every ``x``.

    The bound is that of all maps. The slope of the clamp beyond it would be 0, and an entry stuck.
    """

    name = "clamp"
    is_projection = True

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return x.clamp(max=limits.bound)

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value.clamp(max=limits.bound)

    @override
    def slope(self, x: Tensor, limits: Limits) -> Tensor:
        return torch.ones_like(x)

    @override
    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return x
