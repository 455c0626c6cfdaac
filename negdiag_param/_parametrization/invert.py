"""Computes an original that gives a weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.dominance import Dominance
from negdiag_param._maths.feasible import Assigned, Infeasible, Verdict
from negdiag_param._maths.limits import FLOAT_DTYPES
from negdiag_param._maths.strict import StrictMap
from negdiag_param._private import has_values
from negdiag_param._ranks import agreement, shards


def summary(tensor: Tensor) -> str:
    """What messages say of a tensor."""
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"


def dense(tensor: object) -> Tensor:
    """``tensor``, if it is a dense tensor with entries that can be read."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor, got {type(tensor).__name__}")
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise TypeError(
            f"expected an initialized tensor, got {type(tensor).__name__}; "
            f"run the lazy module once first"
        )
    if tensor.is_nested:
        raise TypeError(f"expected a dense tensor, got a nested one, {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        quantized = " (quantized)" if tensor.is_quantized else ""
        raise TypeError(
            f"expected a dense tensor, got {summary(tensor)}, layout {tensor.layout}{quantized}"
        )
    return tensor


def check(
    tensor: object, diagonal: Diagonal, strict: StrictMap, dominance: Dominance | None = None
) -> None:
    """Refuses tensors that have no diagonal of this kind, or a dtype that does not suit."""
    tensor = dense(tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"expected float16, bfloat16, float32 or float64, got {summary(tensor)}")
    with described(found=f"; got {summary(tensor)}"):
        diagonal.fitted(tensor.shape)
        if dominance:
            dominance.check(diagonal, tensor.shape)
        strict.limits(tensor.dtype)
    shards.parts(tensor, diagonal, dominance)


@torch.inference_mode(False)  # so that what is made can be trained later
@torch.no_grad()
def inverted(
    weight: Tensor,
    diagonal: Diagonal,
    strict: StrictMap,
    infeasible: Infeasible,
    dominance: Dominance | None = None,
) -> tuple[Tensor, str | None, Tensor | None]:
    """A new original that gives ``weight``, what to warn of, and its scaling, if there are any."""
    try:
        check(weight, diagonal, strict, dominance)
    except (TypeError, ValueError):
        agreement.agreed(Verdict(), True, weight)  # as below, where the other ranks wait
        raise
    limits = strict.limits(weight.dtype)
    original = weight.detach().clone(memory_format=_memory_format(weight))
    parts = shards.parts(original, diagonal, dominance) if has_values(original) else []
    if dominance and dominance.kind == "scaled":
        for part, place in parts or [(original, diagonal)]:
            dominance = dominance.scaled(part, place, limits)
    held = [
        dominance.assigned(part, place, limits) if dominance else Assigned(place.view(part), limits)
        for part, place in parts
    ]
    verdict = sum((each.verdict() for each in held), Verdict())
    reason: Exception | None = None
    try:
        verdict.warning(limits, infeasible)
        for each in held:
            each.entries.copy_(strict.inverse(each.feasible(), each.sizes))
    except Exception as error:
        reason = error
    verdict, failed = agreement.agreed(verdict, reason is not None, weight)
    where = f" on rank {failed}" if shards.is_sharded(weight) else ""
    with described(found=f"{where}; got {summary(weight)}"):
        warning = verdict.warning(limits, infeasible)
        if failed is not None:
            raise reason or ValueError("expected a diagonal that all ranks can invert, got none")
    changes = f"{warning}, {summary(weight)}; {verdict.changes(limits)}"
    return original, changes if warning else None, dominance.eta if dominance else None


@contextmanager
def described(name: str = "", found: str = "") -> Iterator[None]:
    """Begins errors with the name of the tensor, and ends them with what it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name and f'{name}: '}{error}{found}") from error


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """That of a contiguous or channels-last tensor; contiguous for a view with other strides."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    found = formats.get(tensor.ndim, torch.contiguous_format)
    fits = tensor.is_contiguous(memory_format=found) and not tensor.is_contiguous()
    return found if fits else torch.contiguous_format
