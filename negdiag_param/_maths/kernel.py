"""Puts a mapped diagonal on a weight: one copy forward, one copy backward, O(n) work besides.

There are several forms of the same operation, because no single one is both fast and accepted by
everything that traces or transforms PyTorch code:

- ``_Fused``, an autograd function around one clone each way, in eager mode and ``torch.compile``;
- for a projection, a clone that is clamped where autograd does not see it, so that its backward
  pass is that of the clone: none;
- ``torch.diagonal_scatter`` under ``torch.func`` and forward-mode AD, and for maps that do not
  come with a slope;
- a ``torch.where`` without in-place writes, while exporting or tracing.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from negdiag_param import _private
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.strict import StrictMap


def constrain(original: Tensor, diagonal: Diagonal, strict: StrictMap) -> Tensor:
    """A copy of ``original`` whose diagonal is mapped by ``strict``."""
    if _private.is_exporting() or torch.jit.is_tracing():
        # Differentiating the value itself would give other slopes at corners, and NaN far out.
        learns = original.requires_grad and not torch.onnx.is_in_onnx_export()
        value = partial(mapped, strict=strict) if learns else strict.value
        return diagonal.exported(original, value)
    if not strict.has_slope or is_transformed(original):
        return diagonal.scattered(original, mapped(diagonal.view(original), strict))
    if strict.is_projection:
        weight = original.clone()
        project_(weight, diagonal, strict)
        return weight
    if original.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(original, diagonal, strict)  # type: ignore[no-any-return, no-untyped-call]
    weight = original.clone()
    entries = diagonal.view(weight)
    entries.copy_(strict.value(entries))
    return weight


def project_(tensor: Tensor, diagonal: Diagonal, strict: StrictMap) -> None:
    """Sets the diagonal entries beyond the bound to it, which autograd does not record."""
    with torch.no_grad():
        diagonal.view(tensor).clamp_(max=strict.limits(tensor.dtype).bound)


def mapped(diagonal: Tensor, strict: StrictMap) -> Tensor:
    """The mapped values of the diagonal entries alone, differentiable to any order."""
    if not strict.has_slope:
        return strict.value(diagonal)
    # Straight-through: the strict value, with the derivatives of the smooth function.
    smooth = strict.smooth(diagonal)
    return strict.value(diagonal.detach()) + (smooth - smooth.detach()).to(diagonal.dtype)


def is_transformed(original: Tensor) -> bool:
    """Whether ``torch.func`` or forward-mode AD is at work, which ``_Fused`` does not support."""
    return not torch.compiler.is_compiling() and (
        _private.function_transforms_active()
        or forward_ad.unpack_dual(original).tangent is not None
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, diagonal: Diagonal, strict: StrictMap) -> Tensor:
        weight = original.clone()
        entries = diagonal.view(weight)
        value, ctx.slope = strict.value_and_slope(entries)
        entries.copy_(value)
        ctx.save_for_backward(original)
        ctx.diagonal, ctx.strict = diagonal, strict
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, diagonal = ctx.slope, ctx.diagonal
        if torch.is_grad_enabled():
            # A second derivative needs the slope as a function of the original.
            (original,) = ctx.saved_tensors
            slope = ctx.strict.slope(diagonal.view(original))
        grad = grad.clone()
        diagonal.view(grad).mul_(slope)
        return grad, None, None
