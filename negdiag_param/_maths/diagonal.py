"""Where the diagonal entries of a weight are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Taps = Literal["all", "center"]
TAPS: tuple[Taps, ...] = ("all", "center")


class Lines(NamedTuple):
    """A tensor with each of its blocks apart, and the dimensions of a matrix in it."""

    blocked: Tensor
    row: int
    column: int
    taps: tuple[int, ...]  # which belong to both rows and columns


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
        blocked, row, column = self._blocked(tensor, dims)
        diagonal = blocked.diagonal(self.offset, row, column)
        if self.taps == "center":
            for dim in reversed(range(self.blocks > 1, diagonal.ndim - 1)):
                diagonal = diagonal.select(dim, (diagonal.shape[dim] - 1) // 2)
        return diagonal

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
        return blocked.diagonal_scatter(values, self.offset, row, column).view(tensor.shape)

    def exported(self, tensor: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """A copy of ``tensor`` with ``value`` of its diagonal there, for exporters and tracers.

        They drop or misplace writes through a diagonal view, and the legacy ONNX exporter forgets
        the shape of what it reads through one.
        """
        dims = self._fitting(tensor)
        if not dims:
            return value(tensor)
        blocked, row, column = self._blocked(tensor, dims)
        mask = _steps(blocked, row) + self.offset == _steps(blocked, column)
        if self.taps == "center":
            mask = mask & _is_center(blocked, range(column + 1, blocked.ndim))
        # A line along the longer of the two matrix dims has at most one diagonal entry: its sum.
        across = row if blocked.shape[row] > blocked.shape[column] else column
        entries = blocked.masked_fill(~mask, 0).sum(across, keepdim=True)
        return torch.where(mask, value(entries), blocked).reshape(tensor.shape)

    def lines(self, tensor: Tensor) -> "Lines":
        """Where the rows and the columns of the matrices in ``tensor`` lie."""
        blocked, row, column = self._blocked(tensor, self._fitting(tensor))
        taps = range(column + 1, blocked.ndim) if self.taps == "center" else ()
        return Lines(blocked, row, column, tuple(taps))

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
