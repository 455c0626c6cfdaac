"""Puts a mapped diagonal on a weight: one copy forward, one copy backward, O(n) work besides.

There are three forms of the same operation, because no single one is both fast and accepted by
everything that traces or transforms PyTorch code:

- ``_Fused``, an autograd function around one clone each way, in eager mode and ``torch.compile``;
- ``torch.diagonal_scatter`` under ``torch.func`` and forward-mode AD, and for maps that do not
  come with a slope;
- a ``torch.where`` without in-place writes, while exporting or tracing.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from negdiag_param import _private
from negdiag_param._diagonal import Diagonal


class Rule(Protocol):
    """What the kernel needs to know of a map: its strict value, and its slope if it has one."""

    @property
    def has_slope(self) -> bool:
        """Whether :meth:`value_and_slope` and :meth:`smooth` are there."""
        ...

    def value(self, original: Tensor) -> Tensor:
        """The mapped diagonal for the original one, differentiable by autograd."""
        ...

    def value_and_slope(self, original: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped diagonal and its derivative, in the dtype that arithmetic runs in."""
        ...

    def slope(self, original: Tensor) -> Tensor:
        """The derivative, differentiable by autograd."""
        ...

    def smooth(self, original: Tensor) -> Tensor:
        """A finite function with the derivatives of the map, to any order."""
        ...


def constrain(original: Tensor, diagonal: Diagonal, rule: Rule) -> Tensor:
    """A copy of ``original`` whose diagonal is mapped by ``rule``."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return diagonal.exported(original, rule.value)
    if not rule.has_slope or _is_transformed(original):
        return diagonal.scattered(original, mapped(diagonal.view(original), rule))
    if original.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(original, diagonal, rule)  # type: ignore[no-any-return, no-untyped-call]
    weight = original.clone()
    entries = diagonal.view(weight)
    entries.copy_(rule.value(entries))
    return weight


def mapped(diagonal: Tensor, rule: Rule) -> Tensor:
    """The mapped values of the diagonal entries alone, differentiable to any order."""
    if not rule.has_slope:
        return rule.value(diagonal)
    # Straight-through: the strict value, with the derivatives of the smooth function.
    smooth = rule.smooth(diagonal)
    return rule.value(diagonal.detach()) + (smooth - smooth.detach())


def _is_transformed(original: Tensor) -> bool:
    return not torch.compiler.is_compiling() and (
        _private.function_transforms_active()
        or forward_ad.unpack_dual(original).tangent is not None
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, diagonal: Diagonal, rule: Rule) -> Tensor:
        weight = original.clone()
        entries = diagonal.view(weight)
        value, ctx.slope = rule.value_and_slope(entries)
        entries.copy_(value)
        ctx.save_for_backward(original)
        ctx.diagonal, ctx.rule = diagonal, rule
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, diagonal = ctx.slope, ctx.diagonal
        if torch.is_grad_enabled():
            # A second derivative needs the slope as a function of the original.
            (original,) = ctx.saved_tensors
            slope = ctx.rule.slope(diagonal.view(original))
        grad = grad.clone()
        diagonal.view(grad).mul_(slope)
        return grad, None, None
