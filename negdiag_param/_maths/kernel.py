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

from collections.abc import Callable
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
    if exports() or not strict.has_slope or is_transformed(original):
        return replaced(original, diagonal, partial(mapped, strict=strict))
    if not strict.is_projection and original.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(original, diagonal, strict)  # type: ignore[no-any-return, no-untyped-call]
    weight = original.clone()
    if strict.is_projection:
        project_(weight, diagonal, strict)
    else:
        entries = diagonal.view(weight)
        entries.copy_(strict.value(entries))
    return weight


def project_(tensor: Tensor, diagonal: Diagonal, strict: StrictMap) -> None:
    """Sets the diagonal entries beyond the bound to it, which autograd does not record."""
    with torch.no_grad():
        diagonal.view(tensor).clamp_(max=strict.limits(tensor.dtype).bound)


def replaced(tensor: Tensor, diagonal: Diagonal, value: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of ``tensor`` with ``value`` of its diagonal entries in their place."""
    if exports():
        return diagonal.exported(tensor, value)
    return diagonal.scattered(tensor, value(diagonal.view(tensor)))


def mapped(entries: Tensor, strict: StrictMap) -> Tensor:
    """The mapped values of the diagonal entries alone, differentiable to any order."""
    if not (strict.has_slope and learns(entries)):
        return strict.value(entries)
    # Straight-through: the strict value, with the derivatives of the smooth function.
    smooth = strict.smooth(entries)
    return strict.value(entries.detach()) + (smooth - smooth.detach()).to(entries.dtype)


def exports() -> bool:
    """Whether an exporter or a tracer is at work."""
    return _private.is_exporting() or torch.jit.is_tracing()


def learns(tensor: Tensor) -> bool:
    """Whether derivatives may be wanted, which are left out of a model that is exported."""
    return not exports() or (tensor.requires_grad and not torch.onnx.is_in_onnx_export())


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
