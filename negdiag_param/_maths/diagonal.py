"""Where the diagonal entries of a weight are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

Taps = Literal["all", "center"]
TAPS: tuple[Taps, ...] = ("all", "center")


@dataclass(frozen=True)
class Diagonal:
    """The diagonal entries of a tensor.

    ``dims`` are the row and the column dimension; ``()`` makes every entry a diagonal entry, and
    None stands for ``()`` in one dimension and ``(0, 1)`` in more. The row dimension holds
    ``blocks`` matrices one below the other, each with a diagonal of its own. Of the dimensions
    that are left, ``taps="center"`` takes the entry ``(k - 1) // 2`` only. In a part of a matrix
    the diagonal starts ``offset`` columns to the right, or ``-offset`` rows down.
    """

    dims: tuple[int, ...] | None = None
    blocks: int = 1
    taps: Taps = "all"
    offset: int = 0

    def view(self, tensor: Tensor) -> Tensor:
        """The diagonal entries of ``tensor``, as a view; the diagonal itself is the last dim."""
        usual = self.blocks == 1 and self.taps == "all" and self.dims in (None, (0, 1))
        if usual and tensor.ndim == 2:
            return tensor.diagonal(self.offset)  # as below, but quickly
        blocked, dims = self._blocked(tensor)
        if not dims:
            return tensor
        if self.taps == "center":
            for size in tensor.shape[2:]:
                blocked = blocked.select(dims[1] + 1, (size - 1) // 2)
        return blocked.diagonal(self.offset, *dims)

    def replaced(
        self, tensor: Tensor, value: Callable[[Tensor], Tensor], traced: bool = False
    ) -> Tensor:
        """A copy of ``tensor`` with ``value`` of its diagonal there, differentiable in every mode.

        Exporters and tracers drop or misplace writes through a diagonal view, and the legacy ONNX
        exporter forgets the shape of what it reads through one: with ``traced`` there is none.
        """
        blocked, dims = self._blocked(tensor)
        if not dims:
            return value(tensor)
        if traced:
            matrices, kernel, restored = self.matrices(tensor)
            mask = _steps(matrices, -2) + self.offset == _steps(matrices, -1)
            mask = mask & _is_center(matrices, kernel) if kernel else mask
            # A row has at most one diagonal entry, which is its sum.
            values = value(matrices.masked_fill(~mask, 0).sum(-1)).unsqueeze(-1)
            return restored(torch.where(mask, values, matrices))
        values = value(self.view(tensor))
        if self.taps == "center":
            # Not select_scatter, which gives wrong second derivatives under torch.func.
            every = blocked.diagonal(self.offset, *dims)
            taps = range(dims[0], every.ndim - 1)
            for dim in taps:
                values = values.unsqueeze(dim)
            values = torch.where(_is_center(every, taps), values, every)
        return blocked.diagonal_scatter(values, self.offset, *dims).view(tensor.shape)

    def matrices(
        self, tensor: Tensor
    ) -> tuple[Tensor, tuple[int, ...], Callable[[Tensor], Tensor]]:
        """The matrices in ``tensor``, as a view whose last two dimensions are rows and columns.

        With the first dimensions of the view, if they belong to both rows and columns, and what
        gives such a view the shape of ``tensor``. Values of the diagonal broadcast against lines.
        """
        blocked, dims = self._blocked(tensor)
        center = self.taps == "center"
        places = [*range(dims[1] + 1)] if center else [*dims]
        last = [*range(blocked.ndim - len(places), blocked.ndim)]

        def restored(matrices: Tensor) -> Tensor:
            matrices = matrices if places == last else matrices.movedim(last, places)
            return matrices if self.blocks == 1 else matrices.reshape(tensor.shape)

        entries = blocked if places == last else blocked.movedim(places, last)
        return entries, tuple(range(last[0])) if center else (), restored

    def fitted(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``dims`` as non-negative numbers; raises a ValueError if the diagonal has no place."""
        ndim, dims = len(shape), self.dims
        if dims is None:
            dims = () if ndim < 2 else (0, 1)
        if any(not -ndim <= dim < ndim for dim in dims):
            raise ValueError(f"expected dims within {ndim} dimensions, got dims={dims}")
        dims = tuple(dim % ndim for dim in dims)
        if dims and dims[0] == dims[1]:
            raise ValueError(f"expected two different dims, got dims={self.dims}")
        if not dims and self.blocks != 1:
            raise ValueError(
                f"expected blocks=1 where every entry is diagonal, got blocks={self.blocks}"
            )
        if dims and shape[dims[0]] % self.blocks:
            raise ValueError(
                f"expected blocks to divide the {shape[dims[0]]} rows of dimension {dims[0]}, "
                f"got blocks={self.blocks}"
            )
        if self.taps == "center" and (dims != (0, 1) or ndim < 3 or 0 in shape[2:]):
            raise ValueError(
                "expected kernel dimensions after dims=(0, 1) for taps='center', found none"
            )
        return dims

    def _blocked(self, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A view with each of the blocks apart, and the dimensions of rows and columns in it."""
        dims = self.fitted(tensor.shape)
        if self.blocks == 1:
            return tensor, dims
        row, column = dims
        # view, not unflatten: gradcheck's batched mode has no rule for unflatten.
        size = tensor.shape[row] // self.blocks
        blocked = tensor.view(*tensor.shape[:row], self.blocks, size, *tensor.shape[row + 1 :])
        return blocked, (row + 1, column + (column > row))


def _is_center(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Where the index is the middle one in all of ``dims``, to broadcast against ``tensor``."""
    masks = (_steps(tensor, dim) == (tensor.shape[dim] - 1) // 2 for dim in dims)
    return reduce(torch.logical_and, masks)


def _steps(tensor: Tensor, dim: int) -> Tensor:
    """0, 1, 2, ... along ``dim``, shaped to broadcast against ``tensor``."""
    shape = [1] * tensor.ndim
    shape[dim] = tensor.shape[dim]
    return torch.arange(tensor.shape[dim], device=tensor.device).view(shape)
