"""A reflection about the boundary."""

import torch
from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap


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
