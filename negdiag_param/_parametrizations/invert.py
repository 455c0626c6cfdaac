"""From a weight to an original that gives it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from negdiag_param._callers import warn_user
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.feasible import Infeasible, Verdict, judge, reflected
from negdiag_param._maths.limits import FLOAT_DTYPES
from negdiag_param._maths.strict import StrictMap
from negdiag_param._parametrizations.options import check_policy
from negdiag_param._ranks import agreement, shards
from negdiag_param._torch_private import has_values


def dtype_of(tensor: object) -> torch.dtype:
    """The dtype of ``tensor``.

    Raises:
        TypeError: if it is none, or not dense.
    """
    return dense(tensor).dtype


def dense(tensor: object, name: str = "") -> Tensor:
    """``tensor``, if all of its entries are there to be read.

    Raises:
        TypeError: if it is no tensor, sparse, quantized, nested or not initialized.
    """
    named = f"{name}: " if name else ""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{named}expected a tensor, got {type(tensor).__name__}")
    if is_lazy(tensor):
        raise TypeError(
            f"{named}expected an initialized tensor, got {type(tensor).__name__}; "
            f"run the lazy module once first"
        )
    if tensor.is_nested:
        raise TypeError(f"{named}expected a dense tensor, got a nested one, {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(
            f"{named}expected a dense tensor, got shape {tuple(tensor.shape)}, {tensor.dtype}, "
            f"layout {tensor.layout}{' (quantized)' if tensor.is_quantized else ''}"
        )
    return tensor


def check(tensor: object, diagonal: Diagonal, strict: StrictMap, name: str) -> None:
    """Refuses what has no diagonal of this kind, saying what was expected.

    Raises:
        TypeError: if ``tensor`` is not a dense, real floating-point tensor.
        ValueError: if the diagonal, the margin or the placements do not fit it.
    """
    tensor = dense(tensor, name)
    found = f"got shape {tuple(tensor.shape)}, {tensor.dtype}"
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, {found}")
    misfit = diagonal.misfit(tensor.shape)
    if misfit:
        raise ValueError(f"{name}: {misfit}; {found}")
    with _named(name, tensor):
        strict.limits(tensor.dtype)
    shards.entries(tensor, diagonal, name)


def judged(
    weight: Tensor, diagonal: Diagonal, strict: StrictMap, infeasible: Infeasible, name: str
) -> str | None:
    """What is to be reflected and warned of before ``weight`` is inverted, if anything.

    Raises:
        TypeError: as :func:`check`.
        ValueError: as :func:`check`, or if the diagonal holds NaN or infinity, or is infeasible
            under ``"error"``.
    """
    check(weight, diagonal, strict, name)
    verdict = _verdict(weight.detach(), diagonal, strict, name)
    with _named(name, weight):
        return verdict.warning(strict.limits(weight.dtype), infeasible)


def inverted(
    weight: Tensor, diagonal: Diagonal, strict: StrictMap, infeasible: Infeasible, name: str
) -> Tensor:
    """An original that gives ``weight``, which it never aliases.

    Raises:
        TypeError: as :func:`check`.
        ValueError: as :func:`judged`, or if a user's inverse does not lead back to ``weight``. If
            it is distributed, on all ranks as soon as one has a reason.
    """
    verdict, original, misfit, reason = Verdict(), weight, None, None
    try:
        check_policy(infeasible)
        check(weight, diagonal, strict, name)
    except (TypeError, ValueError) as error:
        misfit = error
    else:
        with torch.no_grad():
            original = weight.detach().clone(memory_format=_memory_format(weight))
            verdict = _verdict(original, diagonal, strict, name)
            reason = _failure(original, diagonal, strict, infeasible, verdict, name)
    verdict, failed = agreement.agreed(verdict, bool(misfit or reason), weight)
    if misfit:
        raise misfit
    where = f" on rank {failed}" if shards.is_sharded(weight) else ""
    with _named(name, weight, where):
        warning = verdict.warning(strict.limits(weight.dtype), infeasible)
        if failed is not None:
            raise reason or ValueError("expected a diagonal that all ranks can invert, got none")
    if warning:
        shape = tuple(weight.shape)
        warn_user(
            f"{name}: {warning}, shape {shape}, {weight.dtype}; they are reflected, d -> -|d|"
        )
    return original


def _failure(
    original: Tensor,
    diagonal: Diagonal,
    strict: StrictMap,
    infeasible: Infeasible,
    verdict: Verdict,
    name: str,
) -> Exception | None:
    """Inverts the diagonal of ``original`` in place. What this rank finds wrong, if anything."""
    limits = strict.limits(original.dtype)
    held = shards.entries(original, diagonal, name)
    try:
        verdict.warning(limits, infeasible)
        for entries in held if has_values(original) else ():
            entries.copy_(strict.inverse(reflected(entries, limits)))
    except Exception as error:
        return error
    return None


def _verdict(weight: Tensor, diagonal: Diagonal, strict: StrictMap, name: str) -> Verdict:
    """What this rank sees."""
    if not has_values(weight):
        return Verdict()
    limits = strict.limits(weight.dtype)
    held = shards.entries(weight, diagonal, name)
    return sum((judge(entries, limits) for entries in held), Verdict())


@contextmanager
def _named(name: str, weight: Tensor, where: str = "") -> Iterator[None]:
    """Says in an error which tensor it is about, and where."""
    try:
        yield
    except ValueError as error:
        shape = tuple(weight.shape)
        raise ValueError(f"{name}: {error}{where}; got shape {shape}, {weight.dtype}") from error


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
