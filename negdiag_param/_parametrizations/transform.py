"""A ``torch.distributions`` transform as a map."""

import re
from typing import cast

from torch import Tensor
from torch.distributions import ComposeTransform, Transform
from typing_extensions import Unpack, override

from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.options import OptionsDict


class TransformDiagonal(NegativeDiagonal):
    """Keeps a diagonal negative through a transform from the reals to the negative numbers."""

    def __init__(self, transform: Transform, **options: Unpack[OptionsDict]) -> None:
        super().__init__(**options)
        self.transform = _uncached(transform)

    @override
    def map(self, x: Tensor) -> Tensor:
        """The transform itself."""
        return cast(Tensor, self.transform(x))

    @override
    def inverse(self, d: Tensor) -> Tensor:
        """The inverse of the transform."""
        return cast(Tensor, self.transform.inv(d))

    @override
    def extra_repr(self) -> str:
        """The transform and the options that differ from their defaults."""
        return ", ".join(filter(None, [self._own_name(), super().extra_repr()]))

    @override
    def _own_name(self) -> str:
        return re.sub(r" at 0x\w+", "", " ".join(repr(self.transform).split()))


def _uncached(transform: Transform) -> Transform:
    """The transform without its memory of the last tensors, which no copy could take along."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_uncached(part) for part in transform.parts])
    return cast(Transform, transform.with_cache(0))
