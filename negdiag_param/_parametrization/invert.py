"""From a weight to an original that gives it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.feasible import Infeasible, Verdict, judge, reflected
from negdiag_param._maths.limits import FLOAT_DTYPES
from negdiag_param._maths.strict import StrictMap
from negdiag_param._private import has_values
from negdiag_param._ranks import agreement, shards


def summary(tensor: Tensor) -> str:
    """What messages say of a tensor."""
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"


def dense(tensor: object) -> Tensor:
    """``tensor``, if all of its entries are there to be read."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor, got {type(tensor).__name__}")
    if is_lazy(tensor):
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


def check(tensor: object, diagonal: Diagonal, strict: StrictMap) -> None:
    """Refuses what has no diagonal of this kind, saying what was expected."""
    tensor = dense(tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"expected float16, bfloat16, float32 or float64, got {summary(tensor)}")
    misfit = diagonal.misfit(tensor.shape)
    if misfit:
        raise ValueError(f"{misfit}; got {summary(tensor)}")
    with _about(tensor):
        strict.limits(tensor.dtype)
    shards.entries(tensor, diagonal)


def inverted(
    weight: Tensor, diagonal: Diagonal, strict: StrictMap, infeasible: Infeasible
) -> tuple[Tensor, str | None]:
    """An original that gives ``weight``, never aliasing it, and what to warn of, if anything."""
    verdict, original, misfit, reason = Verdict(), weight, None, None
    try:
        check(weight, diagonal, strict)
    except (TypeError, ValueError) as error:
        misfit = error
    else:
        with torch.no_grad():
            original = weight.detach().clone(memory_format=_memory_format(weight))
            verdict = _verdict(original, diagonal, strict)
            reason = _invert(original, diagonal, strict, infeasible, verdict)
    verdict, failed = agreement.agreed(verdict, bool(misfit or reason), weight)
    if misfit:
        raise misfit
    with _about(weight, f" on rank {failed}" if shards.is_sharded(weight) else ""):
        warning = verdict.warning(strict.limits(weight.dtype), infeasible)
        if failed is not None:
            raise reason or ValueError("expected a diagonal that all ranks can invert, got none")
    return original, f"{warning}, {summary(weight)}" if warning else None


@contextmanager
def named(name: str) -> Iterator[None]:
    """Puts the name of the tensor before what is raised about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def _invert(
    original: Tensor,
    diagonal: Diagonal,
    strict: StrictMap,
    infeasible: Infeasible,
    verdict: Verdict,
) -> Exception | None:
    """Inverts the diagonal in place. Returns what this rank finds wrong, if anything."""
    limits = strict.limits(original.dtype)
    try:
        verdict.warning(limits, infeasible)
        for entries in shards.entries(original, diagonal) if has_values(original) else ():
            entries.copy_(strict.inverse(reflected(entries, limits)))
    except Exception as error:
        return error
    return None


def _verdict(weight: Tensor, diagonal: Diagonal, strict: StrictMap) -> Verdict:
    """What this rank sees."""
    if not has_values(weight):
        return Verdict()
    limits = strict.limits(weight.dtype)
    return sum((judge(held, limits) for held in shards.entries(weight, diagonal)), Verdict())


@contextmanager
def _about(weight: Tensor, where: str = "") -> Iterator[None]:
    """Says in an error which tensor it is about, and where."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}{where}; got {summary(weight)}") from error


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """That of a contiguous or channels-last tensor; contiguous for a view with other strides."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if (
        channels_last
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=channels_last)
    ):
        return channels_last
    return torch.contiguous_format
