"""A diagonal that pays for the size of its row or column, so that it dominates the matrix.

After the map, each diagonal entry is lowered by the absolute sum of the other entries of its row or
column. In real arithmetic every Gershgorin disc then lies left of ``-margin``: sums are rounded
up, differences down. Rows that are larger than the dtype's largest number are the exception: the
diagonal stays finite.

In eager mode this is one autograd function with the map; elsewhere it follows the map, as a chain
of operations whose derivatives are those of the formula.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from negdiag_param import _private
from negdiag_param._maths import bisection, kernel
from negdiag_param._maths.diagonal import Diagonal, Lines
from negdiag_param._maths.feasible import Verdict
from negdiag_param._maths.limits import Limits, widened
from negdiag_param._maths.strict import StrictMap

Kind = Literal["rows", "columns", "scaled"]
DOMINANCE: tuple[Kind, ...] = ("rows", "columns", "scaled")


class Sizes(NamedTuple):
    """Absolute sums, shaped as the diagonal."""

    up: Tensor  # rounded up: what the map's values are lowered by
    exact: Tensor  # nearly: what entries are judged by
    finite: Tensor  # whether all that is summed is


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
        exports = _private.is_exporting() or torch.jit.is_tracing()
        compiles = torch.compiler.is_compiling()
        if not (exports or compiles or kernel.is_transformed(original)) and strict.has_slope:
            return _Fused.apply(original, self.eta, diagonal, self, strict)  # type: ignore[no-any-return, no-untyped-call]
        weight = kernel.constrain(original, diagonal, strict)
        lowest = strict.limits(weight.dtype).lowest
        if exports:
            learns = not torch.onnx.is_in_onnx_export()
            rest = diagonal.exported(weight, torch.zeros_like)
            sizes, up = self.sums(rest.abs(), diagonal, keepdim=True)
            return diagonal.exported(weight, lambda x: _through(x, sizes, up, lowest, learns))
        entries = diagonal.view(weight)
        rest = diagonal.scattered(weight, torch.zeros_like(entries))
        entries = _through(entries, *self.sums(rest.abs(), diagonal), lowest)
        return diagonal.scattered(weight, entries)

    def sizes(self, weight: Tensor, diagonal: Diagonal) -> Sizes:
        """What the diagonal has to be larger than."""
        rest = weight.detach().abs()
        diagonal.view(rest).zero_()
        sizes, up = self.sums(rest, diagonal)
        missing, _ = self.sums((~rest.isfinite()).float(), diagonal)
        return Sizes(sizes * up, self.sums(rest.to(_exact(rest)), diagonal)[0], missing == 0)

    def scaled(self, weight: Tensor, diagonal: Diagonal, limits: Limits) -> "Dominance":
        """Under the same scaling or, where that fails, one that makes the matrix dominant, if any.

        With the sizes D of the diagonal entries, less the margin, and N of the others, there is one
        exactly if D - N is a nonsingular M-matrix, and then the solution of (D - N) s = D 1 is one.
        """
        entries = diagonal.view(weight)
        rest = weight.to(_exact(weight)).clone()
        diagonal.view(rest).zero_()
        blocked, row, column, taps = diagonal.lines(rest.abs_())
        others = blocked.movedim((row, column, *taps), tuple(range(-2 - len(taps), 0)))
        others = others.flatten(-1 - len(taps)).unflatten(-1, (blocked.shape[column], -1)).sum(-1)
        sizes = -entries.to(others.dtype) - limits.margin
        system = torch.diag_embed(sizes) - others
        solution = torch.linalg.solve_ex(system, sizes.unsqueeze(-1)).result.squeeze(-1)
        eta = solution.log()
        eta = (eta - eta.mean(-1, keepdim=True)).to(weight.dtype)
        known = torch.zeros_like(eta) if self.eta is None else self.eta.detach().to(eta)
        fits = ~_fails(entries, self.sizes(weight, diagonal), limits).any(-1, keepdim=True)
        found = torch.where(fits | ~eta.isfinite().all(-1, keepdim=True), known, eta)
        other = Dominance(self.kind, found)
        better = ~_fails(entries, other.sizes(weight, diagonal), limits).any(-1, keepdim=True)
        return Dominance(self.kind, torch.where(better, found, known))

    def sums(self, rest: Tensor, diagonal: Diagonal, keepdim: bool = False) -> tuple[Tensor, float]:
        """The sums of ``rest``, absolute and zero on the diagonal, and what rounds them up."""
        blocked, row, column, taps = lines = diagonal.lines(rest)
        kept, summed = (column, row) if self.kind == "columns" else (row, column)
        dims = summed, *taps
        sizes = widened(blocked)
        if self.eta is None:
            sizes = sizes.sum(dims, keepdim=True)
        else:
            scaling = _scaling(self.eta, sizes.dtype)
            sizes = (sizes * _beside(scaling, lines, column)).sum(dims, keepdim=True)
            sizes = sizes / _beside(scaling, lines, row)
        # A sum of n rounded numbers is off by less than n / 2 eps, in whichever order. What is left
        # of n eps covers those who check it by another sum, and 16 more the scaling.
        count = blocked.numel() // max(sizes.numel(), 1) + (0 if self.eta is None else 16)
        if keepdim:
            sizes = sizes.transpose(kept, row)
        else:
            sizes = sizes.squeeze(dims).movedim(kept - sum(dim < kept for dim in dims), -1)
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
        limits = strict.limits(original.dtype)
        weight = original.abs()  # first the sizes, later the weight: two copies take longer
        entries = diagonal.view(weight)
        entries.zero_()
        sizes, up = dominance.sums(weight, diagonal)
        weight.copy_(original)
        ctx.slope = None
        if strict.is_projection:
            values = entries.clamp(max=limits.bound)
        elif any(ctx.needs_input_grad):
            values, ctx.slope = strict.value_and_slope(entries)
            values = values.to(entries.dtype)
        else:
            values = strict.value(entries)
        entries.copy_(below(values, sizes * up, limits.lowest))
        ctx.save_for_backward(original, eta)
        ctx.diagonal, ctx.dominance, ctx.strict = diagonal, dominance, strict
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        original, eta = ctx.saved_tensors
        diagonal, nothing = ctx.diagonal, (None,) * 3
        force, slope, eta_grad = diagonal.view(grad), ctx.slope, None
        differentiates = torch.is_grad_enabled()
        if differentiates and slope is not None:
            # A second derivative needs the first as a function of the original, and of the scaling.
            slope = ctx.strict.slope(diagonal.view(original))
        if differentiates and eta is not None:
            copy, eta = original.clone(), eta.clone()  # not leaves, which may have hooks
            rest = diagonal.scattered(copy, torch.zeros_like(force)).abs()
            sizes, _ = Dominance("scaled", eta).sums(rest, diagonal)
            found, eta_grad = torch.autograd.grad(
                -sizes, (copy, eta), force.to(sizes.dtype), create_graph=True
            )
            found = found + grad
        else:
            signs = original.detach().sign()
            diagonal.view(signs).zero_()
            lines, (signs, *_) = diagonal.lines(grad), diagonal.lines(signs)
            blocked, row, column, taps = lines
            price = force
            if eta is not None:
                scaling = _scaling(eta, signs.dtype)
                signs.mul_(_beside(scaling, lines, column))
                price = force / scaling
            price = _beside(price, lines, column if ctx.dominance.kind == "columns" else row)
            if ctx.needs_input_grad[1]:
                sizes = widened(signs * diagonal.lines(original.detach()).blocked)
                own = sizes.sum((column, *taps), keepdim=True) * price
                others = (sizes * price).sum((row, *taps), keepdim=True)
                eta_grad = (own.transpose(row, column) - others).squeeze((row, *taps))
                eta_grad = eta_grad.movedim(column - (row < column), -1).to(eta)
            found = torch.addcmul(blocked, signs, price, value=-1).view(grad.shape)
        if slope is not None and differentiates:
            found = diagonal.scattered(found, diagonal.view(found) * slope)
        elif slope is not None:
            diagonal.view(found).mul_(slope)
        return found, eta_grad, *nothing


def below(entries: Tensor, sizes: Tensor, lowest: float) -> Tensor:
    """``entries - sizes``, rounded down to the dtype of ``entries``, not below ``lowest``."""
    wide = widened(entries)
    exact = wide - sizes
    step = exact - wide
    error = (wide - (exact - step)) - (sizes + step)  # what rounding has added, with its sign
    info = torch.finfo(entries.dtype)
    if info.bits == 16 and torch.compiler.is_compiling() and not _private.is_exporting():
        return _cut(exact.clamp(min=lowest), error, entries.dtype)
    rounded = exact.clamp(min=lowest).to(entries.dtype)
    found = widened(rounded)
    too_high = (found > exact) | ((found == exact) & (error < 0))
    smallest = info.tiny * info.eps if entries.dtype == torch.float16 else info.tiny
    lower = (found - (found.abs() * (0.75 * info.eps)).clamp(min=smallest)).clamp(min=lowest)
    return torch.where(too_high, lower.to(entries.dtype), rounded)


def _cut(exact: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The next lower half-precision number, from the bits of the float32 one.

    Compilers keep half-precision values in float32 and leave out what rounds them in between.
    """
    spare = 16 if dtype == torch.bfloat16 else 13
    bits = exact.view(torch.int32) + (error < 0)
    cut = ((bits + ((1 << spare) - 1)) & -(1 << spare)).view(torch.float32)
    if dtype == torch.float16:  # whose smallest numbers have fewer bits
        quantum = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        subnormal = ((exact - quantum * (error < 0)) / quantum).floor() * quantum
        cut = torch.where(exact > -torch.finfo(dtype).tiny, subnormal, cut)
    return cut.clamp(min=torch.finfo(dtype).min).to(dtype)


def inverse(entries: Tensor, strict: StrictMap, sizes: Tensor) -> Tensor:
    """The originals whose mapped and lowered values are the feasible ``entries``, or nearest."""
    limits = strict.limits(entries.dtype)

    def value(x: Tensor) -> Tensor:
        return below(strict.value(x), sizes, limits.lowest)

    def found(goal: Tensor) -> Tensor:
        goal = goal.clamp(limits.lowest, limits.bound)
        return strict.inverse(goal.to(entries.dtype).clamp(max=limits.bound))

    goal = widened(entries) + sizes
    original = found(goal)
    if (value(original) == entries).all():
        return original
    reach = 4 * torch.finfo(entries.dtype).eps * (widened(entries).abs() + goal.abs())
    with suppress(ValueError):  # a map that does not reach so far
        ends = found(goal - reach), found(goal + reach)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        nearest = bisection.nearest(value, entries, low, high)
        errors = [(widened(value(x)) - widened(entries)).abs() for x in (nearest, original)]
        original = torch.where(errors[0] < errors[1], nearest, original)
    return original


def judge(entries: Tensor, sizes: Sizes, limits: Limits, diagonal: Diagonal, kind: Kind) -> Verdict:
    """Counts what is not finite and which rows or columns are not dominated, naming the worst."""
    failing = _fails(entries, sizes, limits)
    excess = (entries.to(sizes.exact.dtype) + sizes.exact + limits.margin).where(
        failing, -torch.inf
    )
    name, worst = "", -torch.inf
    if failing.any():
        place = excess.argmax()
        *matrix, index = (int(i) for i in torch.unravel_index(place, excess.shape))
        name = f"{'column' if kind == 'columns' else 'row'} {index + abs(diagonal.offset)}"
        name += f" of matrix {', '.join(map(str, matrix))}" if matrix else ""
        worst = excess.flatten()[place].item()
    return Verdict(
        entries=entries.numel(),
        not_finite=int((~(entries.isfinite() & sizes.finite)).sum()),
        infeasible=int(failing.sum()),
        largest=worst,
        dominance=kind,
        name=name,
        too_large=int((sizes.up - limits.bound > -limits.lowest).sum()),
    )


def feasible(entries: Tensor, sizes: Sizes, limits: Limits) -> Tensor:
    """``entries``, with those that fail lowered as far as needed, and a little further.

    Those at the boundary itself, within the rounding of the sums, are lowered by so much.
    """
    highest, inside = (
        below(torch.full_like(entries, value), sizes.up, limits.lowest)
        for value in (limits.bound, limits.inside)
    )
    kept = torch.minimum(entries, highest)
    return torch.where(_fails(entries, sizes, limits), inside, kept)


def _fails(entries: Tensor, sizes: Sizes, limits: Limits) -> Tensor:
    total = entries.to(sizes.exact.dtype) + sizes.exact
    return (total > -limits.margin) | (total >= 0)


def _exact(tensor: Tensor) -> torch.dtype:
    """What sums are judged in."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _scaling(eta: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(eta)``, each up to a factor, which does not count."""
    eta = eta.to(_exact(eta))
    scaling = (eta - eta.amax(-1, keepdim=True)).exp().to(dtype)
    return scaling.clamp(min=torch.finfo(dtype).tiny)


def _beside(entries: Tensor, lines: Lines, dim: int) -> Tensor:
    """``entries`` of a diagonal along ``dim``, to be broadcast against the blocks."""
    matrix = (lines.row, lines.column, *lines.taps)
    shape = [1 if d in matrix else n for d, n in enumerate(lines.blocked.shape)]
    before = sum(d not in matrix for d in range(dim))
    shape[dim] = entries.shape[-1]
    return entries.movedim(entries.ndim - 1, before).reshape(shape)  # -1 exports wrongly to ONNX


def _through(
    entries: Tensor, sizes: Tensor, up: float, lowest: float, learns: bool = True
) -> Tensor:
    """The lowered entries, with the derivatives of the difference."""
    if not learns:
        return below(entries, sizes * up, lowest)
    smooth = widened(entries) - sizes
    value = below(entries.detach(), sizes.detach() * up, lowest)
    # Where sums overflow, infinity less itself.
    return value + (smooth - smooth.detach()).nan_to_num(0.0).to(entries.dtype)
