"""Where the diagonal entries of a weight are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Taps = Literal["all", "center"]
TAPS: tuple[Taps, ...] = ("all", "center")


class Matrices(NamedTuple):
    """The matrices in a tensor."""

    entries: Tensor  # a view of the tensor, whose last two dimensions are rows and columns
    kernel: tuple[int, ...]  # its first dimensions, if they belong to both rows and columns
    restored: Callable[[Tensor], Tensor]  # to the shape of the tensor


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
        dims = self._fitting(tensor)
        if not dims:
            return tensor
        if self.taps == "center":
            for size in tensor.shape[2:]:
                tensor = tensor.select(2, (size - 1) // 2)
        blocked, row, column = self._blocked(tensor, dims)
        return blocked.diagonal(self.offset, row, column)

    def scattered(self, tensor: Tensor, values: Tensor) -> Tensor:
        """A copy of ``tensor`` with ``values`` on the diagonal, differentiable in every mode."""
        dims = self._fitting(tensor)
        if not dims:
            return values
        blocked, row, column = self._blocked(tensor, dims)
        if self.taps == "center":
            # Not select_scatter, which gives wrong second derivatives under torch.func.
            every = blocked.diagonal(self.offset, row, column)
            kernel = range(self.blocks > 1, every.ndim - 1)
            for dim in kernel:
                values = values.unsqueeze(dim)
            values = torch.where(_is_center(every, kernel), values, every)
        scattered = blocked.diagonal_scatter(values, self.offset, row, column)
        return scattered if self.blocks == 1 else scattered.view(tensor.shape)

    def exported(self, tensor: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """A copy of ``tensor`` with ``value`` of its diagonal there, for exporters and tracers.

        They drop or misplace writes through a diagonal view, and the legacy ONNX exporter forgets
        the shape of what it reads through one.
        """
        if not self._fitting(tensor):
            return value(tensor)
        matrices, kernel, restored = self.matrices(tensor)
        mask = _steps(matrices, -2) + self.offset == _steps(matrices, -1)
        if kernel:
            mask = mask & _is_center(matrices, kernel)
        # A line along the longer of the two matrix dims has at most one diagonal entry: its sum.
        across = -2 if matrices.shape[-2] > matrices.shape[-1] else -1
        values = value(matrices.masked_fill(~mask, 0).sum(across)).unsqueeze(across)
        return restored(torch.where(mask, values, matrices))

    def matrices(self, tensor: Tensor) -> Matrices:
        """The matrices in ``tensor``; values of the diagonal broadcast against their lines."""
        blocked, row, column = self._blocked(tensor, self._fitting(tensor))
        center = self.taps == "center"
        places = [*range(column + 1)] if center else [row, column]
        last = [*range(blocked.ndim - len(places), blocked.ndim)]

        def restored(matrices: Tensor) -> Tensor:
            matrices = matrices if places == last else matrices.movedim(last, places)
            return matrices if self.blocks == 1 else matrices.reshape(tensor.shape)

        entries = blocked if places == last else blocked.movedim(places, last)
        return Matrices(entries, tuple(range(last[0])) if center else (), restored)

    def resolved(self, ndim: int) -> tuple[int, ...]:
        """``dims`` as non-negative numbers, for a tensor of ``ndim`` dimensions."""
        if self.dims is None:
            return () if ndim < 2 else (0, 1)
        return tuple(dim % ndim for dim in self.dims) if self.dims else ()

    def misfit(self, shape: torch.Size) -> str | None:
        """What is wrong with this diagonal for a tensor of ``shape``, or None if it fits."""
        ndim = len(shape)
        dims = self.dims or ()
        if any(not -ndim <= dim < ndim for dim in dims):
            return f"expected dims within {ndim} dimensions, got dims={dims}"
        dims = self.resolved(ndim)
        if dims and dims[0] == dims[1]:
            return f"expected two different dims, got dims={self.dims}"
        if not dims and self.blocks != 1:
            return f"expected blocks=1 where every entry is diagonal, got blocks={self.blocks}"
        if dims and shape[dims[0]] % self.blocks:
            return (
                f"expected blocks to divide the {shape[dims[0]]} rows of dimension {dims[0]}, "
                f"got blocks={self.blocks}"
            )
        if self.taps == "center" and (dims != (0, 1) or ndim < 3 or 0 in shape[2:]):
            return "expected kernel dimensions after dims=(0, 1) for taps='center', found none"
        return None

    def _fitting(self, tensor: Tensor) -> tuple[int, ...]:
        misfit = self.misfit(tensor.shape)
        if misfit:
            raise ValueError(misfit)
        return self.resolved(tensor.ndim)

    def _blocked(self, tensor: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, int, int]:
        """A view with each of the blocks apart, and the dimensions of rows and columns in it."""
        row, column = dims
        if self.blocks == 1:
            return tensor, row, column
        shape = list(tensor.shape)
        shape[row : row + 1] = [self.blocks, shape[row] // self.blocks]
        # view, not unflatten: gradcheck's batched mode has no rule for unflatten.
        return tensor.view(shape), row + 1, column + (column > row)


def _is_center(tensor: Tensor, dims: Iterable[int]) -> Tensor:
    """Where the index is the middle one in all of ``dims``, to broadcast against ``tensor``."""
    masks = (_steps(tensor, dim) == (tensor.shape[dim] - 1) // 2 for dim in dims)
    return reduce(torch.logical_and, masks)


def _steps(tensor: Tensor, dim: int) -> Tensor:
    """0, 1, 2, ... along ``dim``, shaped to broadcast against ``tensor``."""
    shape = [1] * tensor.ndim
    shape[dim] = tensor.shape[dim]
    return torch.arange(tensor.shape[dim], device=tensor.device).view(shape)
