"""A weight that was computed before, with what tells whether it still holds."""

import torch
from torch import Tensor

from negdiag_param import _private


class Snapshot:
    """A mapped weight, valid as long as neither it nor its original has changed."""

    __slots__ = ("_of", "_original", "_weight_version", "weight")

    weight: Tensor

    def __init__(self, original: Tensor) -> None:
        self._original = original
        self._of = _state(original)

    def keep(self, weight: Tensor) -> None:
        """Remembers ``weight`` as what the original maps to."""
        self.weight = weight
        self._weight_version = weight._version

    def is_fresh(self, original: Tensor) -> bool:
        """Whether ``weight`` is still what ``original`` maps to, and may stand for it.

        A trace must not: it would keep the weight as a constant.
        """
        return (
            self._original is original
            and self._of == _state(original)
            and self._weight_version == self.weight._version
            and not torch.jit.is_tracing()
        )

    @staticmethod
    def supports(original: Tensor) -> bool:
        """Whether changes of ``original`` can be noticed, and nothing is tracing or transforming.

        Subclasses such as DTensor and fake tensors are left alone.
        """
        return (
            type(original) in (Tensor, torch.nn.Parameter)
            and not original.is_inference()
            and not torch.jit.is_tracing()
            and not torch.compiler.is_exporting()
            and not _private.function_transforms_active()
        )


def _state(original: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    return original._version, original.data_ptr(), original.dtype, original.device
