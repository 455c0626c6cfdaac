"""From a weight to an original that gives it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from negdiag_param._callers import warn_user
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.feasible import Infeasible, Verdict, judge, reflected
from negdiag_param._maths.limits import FLOAT_DTYPES
from negdiag_param._maths.strict import StrictMap
from negdiag_param._ranks import dtensor


def dtype_of(tensor: object) -> torch.dtype:
    """The dtype of ``tensor``.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor, got {type(tensor).__name__}")
    return tensor.dtype


def check(tensor: object, diagonal: Diagonal, strict: StrictMap, name: str) -> None:
    """Refuses what has no diagonal of this kind, saying what was expected.

    Raises:
        TypeError: if ``tensor`` is not a dense, real floating-point tensor.
        ValueError: if the diagonal, the margin or the placements do not fit it.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    found = f"got shape {tuple(tensor.shape)}, {tensor.dtype}"
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(
            f"{name}: expected a dense tensor, {found}, "
            f"layout {tensor.layout}{' (quantized)' if tensor.is_quantized else ''}"
        )
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, {found}")
    misfit = diagonal.misfit(tensor.shape)
    if misfit:
        raise ValueError(f"{name}: {misfit}; {found}")
    with _named(name, tensor):
        strict.limits(tensor.dtype)
    dtensor.local(tensor, diagonal, name)


def judged(
    weight: Tensor, diagonal: Diagonal, strict: StrictMap, infeasible: Infeasible, name: str
) -> str | None:
    """What to warn of before ``weight`` is inverted, if anything.

    Raises:
        TypeError: as :func:`check`.
        ValueError: as :func:`check`, or if the diagonal holds NaN or infinity, or is infeasible
            under ``"error"``.
    """
    check(weight, diagonal, strict, name)
    if weight.is_meta:
        return None
    limits = strict.limits(weight.dtype)
    local, parts = dtensor.local(weight.detach(), diagonal, name)
    verdict = sum((judge(part.view(local), limits) for part in parts), Verdict())
    with _named(name, weight):
        return verdict.warning(limits, infeasible)


def inverted(
    weight: Tensor, diagonal: Diagonal, strict: StrictMap, infeasible: Infeasible, name: str
) -> Tensor:
    """An original that gives ``weight``, which it never aliases.

    Raises:
        TypeError: as :func:`check`.
        ValueError: as :func:`judged`, or if a user's inverse does not lead back to ``weight``.
    """
    warning = judged(weight, diagonal, strict, infeasible, name)
    with torch.no_grad():
        original = weight.detach().clone(memory_format=_memory_format(weight))
        if original.is_meta:
            return original
        local, parts = dtensor.local(original, diagonal, name)
        with _named(name, weight):
            for part in parts:
                entries = part.view(local)
                feasible = reflected(entries, strict.limits(weight.dtype))
                entries.copy_(strict.inverse(feasible))
    if warning:
        shape = tuple(weight.shape)
        warn_user(
            f"{name}: {warning}, shape {shape}, {weight.dtype}; they are reflected, d -> -|d|"
        )
    return original


@contextmanager
def _named(name: str, weight: Tensor) -> Iterator[None]:
    """Says in an error which tensor it is about."""
    try:
        yield
    except ValueError as error:
        shape = tuple(weight.shape)
        raise ValueError(f"{name}: {error}; got shape {shape}, {weight.dtype}") from error


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
