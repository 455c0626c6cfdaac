"""A diagonal that pays for the size of its row or column, so that it dominates the matrix.

After the map, each diagonal entry is lowered by the absolute sum of the other entries of its row or
column. In real arithmetic every Gershgorin disc then lies left of ``-margin``: sums are rounded
up, differences down. Rows that are larger than the dtype's largest number are the exception: the
diagonal stays finite.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.feasible import Assigned
from negdiag_param._maths.limits import Limits, exact_dtype, widened

Kind = Literal["rows", "columns", "scaled"]
DOMINANCE: tuple[Kind, ...] = ("rows", "columns", "scaled")


@dataclass(frozen=True, eq=False)
class Dominance:
    """What each diagonal entry is lowered by, and under which scaling.

    ``eta`` holds the logarithms of a positive vector ``s``, shaped as the diagonal: entry (i, j)
    then counts ``s_j / s_i`` times. None stands for zeros.
    """

    kind: Kind
    eta: Tensor | None = None

    def check(self, diagonal: Diagonal, shape: torch.Size) -> None:
        """Raises a ValueError if a tensor of ``shape`` is not square matrices."""
        ndim, asked = len(shape), f"for dominance={self.kind!r}"
        dims = diagonal.fitted(shape)
        if not dims:
            raise ValueError(
                f"expected a matrix {asked}, got a tensor of which every entry is diagonal"
            )
        if ndim > 2 and diagonal.dims is None and diagonal.taps == "all":
            raise ValueError(
                f"expected taps='center' for a convolution, or dims for a batch of matrices, "
                f"{asked}, got neither"
            )
        rows, columns = shape[dims[0]] // diagonal.blocks, shape[dims[1]]
        if rows != columns:
            each = "" if diagonal.blocks == 1 else f" in each of {diagonal.blocks} blocks"
            found = f"{rows} rows and {columns} columns{each}"
            raise ValueError(f"expected a square matrix {asked}, got {found}")

    def assigned(self, weight: Tensor, diagonal: Diagonal, limits: Limits) -> Assigned:
        """The diagonal entries of ``weight``, with what they have to outweigh."""
        rest = weight.detach().abs()
        diagonal.view(rest).zero_()
        sizes, up = self.sums(rest, diagonal)
        exact, _ = self.sums(rest.to(exact_dtype(rest)).where(rest.isfinite(), torch.nan), diagonal)
        entries = diagonal.view(weight)
        return Assigned(entries, limits, sizes * up, exact, self.kind, diagonal.offset)

    def scaled(self, weight: Tensor, diagonal: Diagonal, limits: Limits) -> "Dominance":
        """Under the same scaling or, where that fails, one that makes the matrix dominant, if any.

        With the sizes D of the diagonal entries, less the margin, and N of the others, there is one
        exactly if D - N is a nonsingular M-matrix, and then the solution of (D - N) s = D 1 is one.
        """
        rest = weight.to(exact_dtype(weight)).abs()
        diagonal.view(rest).zero_()
        others, kernel, _ = diagonal.matrices(rest)
        others = others.sum(kernel) if kernel else others
        sizes = -diagonal.view(weight).to(others.dtype) - limits.margin
        solution = torch.linalg.solve_ex(torch.diag_embed(sizes) - others, sizes.unsqueeze(-1))
        eta = solution.result.squeeze(-1).log()
        eta = (eta - eta.mean(-1, keepdim=True)).to(weight.dtype)
        known = torch.zeros_like(eta) if self.eta is None else self.eta.detach().to(eta)

        def fails(eta: Tensor) -> Tensor:
            dominance = Dominance(self.kind, eta)
            return dominance.assigned(weight, diagonal, limits).failing.any(-1, keepdim=True)

        return Dominance(self.kind, torch.where(fails(known) & ~fails(eta), eta, known))

    def sums(self, rest: Tensor, diagonal: Diagonal) -> tuple[Tensor, float]:
        """The sums of ``rest``, absolute and zero on the diagonal, and what rounds them up."""
        others, kernel, _ = diagonal.matrices(rest)
        others = widened(others)
        dims = *kernel, -2 if self.kind == "columns" else -1
        if self.eta is None:
            sizes = others.sum(dims)
        else:
            scaling = _scaling(self.eta, others.dtype)
            sizes = (others * scaling.unsqueeze(-2)).sum(dims) / scaling
        # A sum of n rounded numbers is off by less than n / 2 eps, in whichever order. What is left
        # of n eps covers those who check it by another sum, and 16 more the scaling.
        count = others.numel() // max(sizes.numel(), 1) + (0 if self.eta is None else 16)
        return sizes, 1.0 + count * torch.finfo(sizes.dtype).eps

    def gradients(
        self, original: Tensor, grad: Tensor, diagonal: Diagonal
    ) -> tuple[Tensor, Tensor | None]:
        """Those of ``original``, apart from the slope of the map, and of ``eta``."""
        signs = original.sign()
        diagonal.view(signs).zero_()
        signs, kernel, restored = diagonal.matrices(signs)
        price, eta_grad = diagonal.view(grad), None
        if self.eta is not None:
            scaling = _scaling(self.eta, signs.dtype)
            signs.mul_(scaling.unsqueeze(-2))
            price = price / scaling
        price = price.unsqueeze(-2 if self.kind == "columns" else -1)
        if self.eta is not None and self.eta.requires_grad:
            paid = widened(signs * diagonal.matrices(original)[0]) * price
            eta_grad = (paid.sum((*kernel, -1)) - paid.sum((*kernel, -2))).to(self.eta)
        whole = torch.addcmul(diagonal.matrices(grad)[0], signs, price, value=-1)
        return restored(whole), eta_grad


def _scaling(eta: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(eta)``, each up to a factor, which does not count."""
    eta = eta.to(exact_dtype(eta))
    scaling = (eta - eta.amax(-1, keepdim=True)).exp().to(dtype)
    return scaling.clamp(min=torch.finfo(dtype).tiny)
