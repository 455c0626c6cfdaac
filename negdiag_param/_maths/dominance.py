"""A diagonal that pays for the size of its row or column, so that it dominates the matrix.

After the map, each diagonal entry is lowered by the absolute sum of the other entries of its row or
column. In real arithmetic every Gershgorin disc then lies left of ``-margin``: sums are rounded
up, differences down. Rows that are larger than the dtype's largest number are the exception: the
diagonal stays finite.

In eager mode this is one autograd function with the map; elsewhere it follows the map, as a chain
of operations whose derivatives are those of the formula.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from negdiag_param._maths import kernel
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.feasible import Sizes, fails
from negdiag_param._maths.limits import Limits, below, exact_dtype, widened
from negdiag_param._maths.strict import StrictMap

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

    def misfit(self, diagonal: Diagonal, shape: torch.Size) -> str | None:
        """What keeps a tensor of ``shape`` from being square matrices, or None."""
        ndim, asked = len(shape), f"for dominance={self.kind!r}"
        dims = diagonal.resolved(ndim)
        if not dims:
            return f"expected a matrix {asked}, got a tensor of which every entry is diagonal"
        if ndim > 2 and diagonal.dims is None and diagonal.taps == "all":
            return (
                f"expected taps='center' for a convolution, or dims for a batch of matrices, "
                f"{asked}, got neither"
            )
        rows, columns = shape[dims[0]] // diagonal.blocks, shape[dims[1]]
        if rows != columns:
            each = "" if diagonal.blocks == 1 else f" in each of {diagonal.blocks} blocks"
            return f"expected a square matrix {asked}, got {rows} rows and {columns} columns{each}"
        return None

    def constrain(self, original: Tensor, diagonal: Diagonal, strict: StrictMap) -> Tensor:
        """A copy of ``original`` whose diagonal is mapped by ``strict``, then lowered."""
        chains = kernel.exports() or torch.compiler.is_compiling() or not strict.has_slope
        if chains or kernel.is_transformed(original):
            return self.chained(original, diagonal, strict)
        return _Fused.apply(original, self.eta, diagonal, self, strict)  # type: ignore[no-any-return, no-untyped-call]

    def chained(self, original: Tensor, diagonal: Diagonal, strict: StrictMap) -> Tensor:
        """As :meth:`constrain`, by a chain of operations that are differentiable to any order."""
        weight = kernel.constrain(original, diagonal, strict)
        limits = strict.limits(weight.dtype)
        rest = kernel.replaced(weight, diagonal, torch.zeros_like)
        sizes, up = self.sums(rest.abs(), diagonal)

        def lowered(entries: Tensor) -> Tensor:
            smooth = widened(entries) - sizes
            value = below(entries.detach(), sizes.detach() * up, limits)
            if not kernel.learns(smooth):
                return value
            # Where sums overflow, infinity less itself.
            return value + (smooth - smooth.detach()).nan_to_num(0.0).to(entries.dtype)

        return kernel.replaced(weight, diagonal, lowered)

    def sizes(self, weight: Tensor, diagonal: Diagonal) -> Sizes:
        """What the diagonal has to be larger than."""
        rest = weight.detach().abs()
        diagonal.view(rest).zero_()
        sizes, up = self.sums(rest, diagonal)
        exact, _ = self.sums(rest.to(exact_dtype(rest)), diagonal)
        missing, _ = self.sums((~rest.isfinite()).float(), diagonal)
        return Sizes(sizes * up, exact, missing == 0)

    def scaled(self, weight: Tensor, diagonal: Diagonal, limits: Limits) -> "Dominance":
        """Under the same scaling or, where that fails, one that makes the matrix dominant, if any.

        With the sizes D of the diagonal entries, less the margin, and N of the others, there is one
        exactly if D - N is a nonsingular M-matrix, and then the solution of (D - N) s = D 1 is one.
        """
        entries = diagonal.view(weight)
        rest = weight.to(exact_dtype(weight)).abs()
        diagonal.view(rest).zero_()
        others, kernel_dims, _ = diagonal.matrices(rest)
        others = others.sum(kernel_dims) if kernel_dims else others
        sizes = -entries.to(others.dtype) - limits.margin
        solution = torch.linalg.solve_ex(torch.diag_embed(sizes) - others, sizes.unsqueeze(-1))
        eta = solution.result.squeeze(-1).log()
        eta = (eta - eta.mean(-1, keepdim=True)).to(weight.dtype)
        known = torch.zeros_like(eta) if self.eta is None else self.eta.detach().to(eta)

        def suits(eta: Tensor) -> Tensor:
            outweighed = Dominance(self.kind, eta).sizes(weight, diagonal)
            failing = fails(entries, outweighed, limits).any(-1, keepdim=True)
            return eta.isfinite().all(-1, keepdim=True) & ~failing

        return Dominance(self.kind, torch.where(suits(eta) & ~suits(known), eta, known))

    def sums(self, rest: Tensor, diagonal: Diagonal) -> tuple[Tensor, float]:
        """The sums of ``rest``, absolute and zero on the diagonal, and what rounds them up."""
        others, kernel_dims, _ = diagonal.matrices(rest)
        others = widened(others)
        dims = *kernel_dims, -2 if self.kind == "columns" else -1
        if self.eta is None:
            sizes = others.sum(dims)
        else:
            scaling = _scaling(self.eta, others.dtype)
            sizes = (others * scaling.unsqueeze(-2)).sum(dims) / scaling
        # A sum of n rounded numbers is off by less than n / 2 eps, in whichever order. What is left
        # of n eps covers those who check it by another sum, and 16 more the scaling.
        count = others.numel() // max(sizes.numel(), 1) + (0 if self.eta is None else 16)
        return sizes, 1.0 + count * torch.finfo(sizes.dtype).eps


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        original: Tensor,
        eta: Tensor | None,
        diagonal: Diagonal,
        dominance: Dominance,
        strict: StrictMap,
    ) -> Tensor:
        weight = original.abs()  # first the sizes, later the weight: two copies take longer
        entries = diagonal.view(weight)
        entries.zero_()
        sizes, up = dominance.sums(weight, diagonal)
        weight.copy_(original)
        ctx.slope = None
        if strict.is_projection or not any(ctx.needs_input_grad):
            values = strict.value(entries)
        else:
            values, ctx.slope = strict.value_and_slope(entries)
        limits = strict.limits(original.dtype)
        entries.copy_(below(values.to(entries.dtype), sizes * up, limits))
        ctx.save_for_backward(original, eta)
        ctx.diagonal, ctx.dominance, ctx.strict = diagonal, dominance, strict
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        original, eta = ctx.saved_tensors
        diagonal, kind, eta_grad = ctx.diagonal, ctx.dominance.kind, None
        if torch.is_grad_enabled():
            # Second derivatives need the first as functions of the original and of the scaling.
            copy, eta = original.clone(), None if eta is None else eta.clone()  # not leaves
            weight = Dominance(kind, eta).chained(copy, diagonal, ctx.strict)
            inputs = [t for t in (copy, eta) if t is not None and t.requires_grad]
            grads = torch.autograd.grad(weight, inputs, grad, create_graph=True)
            found = {id(t): its for t, its in zip(inputs, grads, strict=True)}
            return found.get(id(copy)), found.get(id(eta)), None, None, None
        signs = original.sign()
        diagonal.view(signs).zero_()
        signs, kernel_dims, restored = diagonal.matrices(signs)
        price = diagonal.view(grad)
        if eta is not None:
            scaling = _scaling(eta, signs.dtype)
            signs.mul_(scaling.unsqueeze(-2))
            price = price / scaling
        price = price.unsqueeze(-2 if kind == "columns" else -1)
        if ctx.needs_input_grad[1]:
            paid = widened(signs * diagonal.matrices(original).entries) * price
            eta_grad = (paid.sum((*kernel_dims, -1)) - paid.sum((*kernel_dims, -2))).to(eta)
        found = restored(torch.addcmul(diagonal.matrices(grad).entries, signs, price, value=-1))
        if ctx.slope is not None:
            diagonal.view(found).mul_(ctx.slope)
        return found, eta_grad, None, None, None


def _scaling(eta: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(eta)``, each up to a factor, which does not count."""
    eta = eta.to(exact_dtype(eta))
    scaling = (eta - eta.amax(-1, keepdim=True)).exp().to(dtype)
    return scaling.clamp(min=torch.finfo(dtype).tiny)
