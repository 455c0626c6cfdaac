"""The diagonal within a part of a shard."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.diagonal import Diagonal


@dataclass(frozen=True)
class Part(Diagonal):
    """A diagonal within a box of a shard: the start and the length in every dimension."""

    box: tuple[tuple[int, int], ...] = ()

    @override
    def view(self, tensor: Tensor) -> Tensor:
        for dim, (start, length) in enumerate(self.box):
            if length != tensor.shape[dim]:
                tensor = tensor.narrow(dim, start, length)
        return super().view(tensor)

    @override
    def scattered(self, tensor: Tensor, values: Tensor) -> Tensor:
        return self._scattered(tensor, values, 0)

    @override
    def exported(self, tensor: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        # No exporter that needs another form takes distributed tensors.
        return self.scattered(tensor, value(self.view(tensor)))

    def _scattered(self, tensor: Tensor, values: Tensor, dim: int) -> Tensor:
        if dim == len(self.box):
            return super().scattered(tensor, values)
        start, length = self.box[dim]
        inner = self._scattered(tensor.narrow(dim, start, length), values, dim + 1)
        return tensor.slice_scatter(inner, dim, start, start + length)
