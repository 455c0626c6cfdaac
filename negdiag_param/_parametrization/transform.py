"""A ``torch.distributions`` transform as a map."""

import copy
import re
from typing import cast

from torch import Tensor
from torch.distributions import ComposeTransform, Transform
from typing_extensions import Unpack, override

from negdiag_param._parametrization.options import OptionsDict, options_shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal


class TransformDiagonal(NegativeDiagonal):
    """Keeps a diagonal negative through a transform from the reals to the negative numbers."""

    @options_shown
    def __init__(
        self, transform: Transform, margin: float = 0.0, **options: Unpack[OptionsDict]
    ) -> None:
        super().__init__(margin, **options)
        self.transform = _copyable(transform)

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


def _copyable(transform: Transform) -> Transform:
    """The transform as copies of a module take it along, without its memory of the last tensors."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_copyable(part) for part in transform.parts])
    try:
        found = cast(Transform, transform.with_cache(0))
        copy.deepcopy(found).bijective  # noqa: B018 (the copy of an inverse has lost its transform)
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"map: expected a transform that can be copied, without .inv and with cache_size=0, "
            f"got {transform}"
        ) from error
    return found
