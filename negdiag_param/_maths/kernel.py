"""Puts a mapped diagonal on a weight: one copy forward, one copy backward, O(n) work besides.

No single form is both fast and accepted by everything that traces or transforms PyTorch code. In
eager mode and ``torch.compile`` it is ``_Fused``, an autograd function around one clone each way;
for a projection, a clone that is clamped where autograd does not see it, so that its backward pass
is that of the clone: none. All else is a chain of operations: under ``torch.func`` and forward-mode
AD, for maps without a slope, second derivatives and compiled dominance, and in exports and traces.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from negdiag_param import _private
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.dominance import Dominance
from negdiag_param._maths.limits import below, widened
from negdiag_param._maths.strict import StrictMap


def constrain(
    original: Tensor, diagonal: Diagonal, strict: StrictMap, dominance: Dominance | None = None
) -> Tensor:
    """A copy of ``original`` whose diagonal is mapped, and then lowered if it has to dominate."""
    traced = _private.is_exporting() or torch.jit.is_tracing()
    chains = traced or not strict.has_slope or is_transformed(original)
    if chains or (dominance and torch.compiler.is_compiling()):
        return _chained(original, diagonal, strict, dominance)
    trains = not strict.is_projection and original.requires_grad and torch.is_grad_enabled()
    if dominance or trains:
        eta = dominance.eta if dominance else None
        return _Fused.apply(original, eta, diagonal, strict, dominance)  # type: ignore[no-any-return, no-untyped-call]
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


def is_transformed(original: Tensor) -> bool:
    """Whether ``torch.func`` or forward-mode AD is at work, which ``_Fused`` does not support."""
    return not torch.compiler.is_compiling() and (
        _private.function_transforms_active()
        or forward_ad.unpack_dual(original).tangent is not None
    )


def _chained(
    original: Tensor, diagonal: Diagonal, strict: StrictMap, dominance: Dominance | None
) -> Tensor:
    """:func:`constrain` as a chain of operations, differentiable to any order."""
    traced = _private.is_exporting() or torch.jit.is_tracing()
    if dominance is None:
        return diagonal.replaced(original, strict.mapped, traced)
    rest = diagonal.replaced(original, torch.zeros_like, traced)
    sizes, up = dominance.sums(rest.abs(), diagonal)

    def lowered(entries: Tensor) -> Tensor:
        mapped = strict.mapped(entries)
        smooth = widened(mapped) - sizes
        value = below(mapped.detach(), sizes.detach() * up, strict.limits(mapped.dtype))
        if torch.onnx.is_in_onnx_export():
            return value
        # Where sums overflow, infinity less itself.
        return value + (smooth - smooth.detach()).nan_to_num(0.0).to(mapped.dtype)

    return diagonal.replaced(original, lowered, traced)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, eta: Tensor | None, *others: Any) -> Tensor:
        diagonal, strict, dominance = ctx.others = others
        weight = original.abs() if dominance else original.clone()
        entries = diagonal.view(weight)
        if dominance:  # first the sizes, later the weight: two copies take longer
            entries.zero_()
            sizes, up = dominance.sums(weight, diagonal)
            weight.copy_(original)
        if strict.is_projection or not any(ctx.needs_input_grad):
            value, ctx.slope = strict.value(entries), None
        else:
            value, ctx.slope = strict.value_and_slope(entries)
        if dominance:
            value = below(value.to(weight.dtype), sizes * up, strict.limits(weight.dtype))
        entries.copy_(value)
        ctx.save_for_backward(original, eta)
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        diagonal, strict, dominance = ctx.others
        if torch.is_grad_enabled():
            # Second derivatives need the first as functions of the original and of the scaling.
            # The copies are not leaves, which may have hooks.
            copies = [t.clone().requires_grad_() for t in ctx.saved_tensors if t is not None]
            if dominance:
                dominance = Dominance(dominance.kind, *copies[1:])
            weight = _chained(copies[0], diagonal, strict, dominance)
            grads = torch.autograd.grad(weight, copies, grad, create_graph=True)
            return *grads, *(None,) * (5 - len(grads))
        if dominance:
            grad, eta_grad = dominance.gradients(ctx.saved_tensors[0], grad, diagonal)
        else:
            grad, eta_grad = grad.clone(), None
        if ctx.slope is not None:
            diagonal.view(grad).mul_(ctx.slope)
        return grad, eta_grad, None, None, None
