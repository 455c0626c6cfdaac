"""What "strictly negative and at most ``-margin``" means in the dtype that stores the result."""

from dataclasses import dataclass
from math import ceil, frexp, ldexp

import torch
from torch import Tensor

from negdiag_param import _private

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def widened(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype that its arithmetic runs in: float32 at least."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which sums of entries of ``tensor`` are as good as exact."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Limits:
    """The bounds of a mapped value in one storage dtype, as Python floats that it represents."""

    margin: float
    smallest: float  # the smallest positive number that arithmetic does not flush to zero
    lowest: float  # the most negative finite value
    bound: float  # the largest mapped value: <= -margin and < 0
    inside: float  # where an entry starts that reflection does not bring below the bound
    nearest: float  # the floor of the distance to -margin, which keeps inverses finite
    steepest: float  # the largest slope, so that gradients do not overflow

    def __deepcopy__(self, memo: object) -> "Limits":
        return self

    @classmethod
    def of(cls, dtype: torch.dtype, margin: float) -> "Limits":
        """The limits in ``dtype``."""
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"expected float16, bfloat16, float32 or float64, got {dtype}")
        info = torch.finfo(dtype)
        wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        away = max(1e-3, 8 * info.eps * margin)
        if margin + away > info.max:
            raise ValueError(
                f"expected a margin that {dtype} can keep clear of its largest value, "
                f"got margin={margin}"
            )
        # Processors may flush subnormals to zero, but float16 is computed with in float32.
        smallest = info.tiny * info.eps if dtype == torch.float16 else info.tiny
        # A distance of margin * eps / 8 is below half an ulp of margin, so -margin itself
        # goes through inverse and map unchanged.
        return cls(
            margin=margin,
            smallest=smallest,
            lowest=-info.max,
            bound=-_round_away(max(margin, smallest), info),
            inside=-_round_away(margin + away, info),
            nearest=max(margin * info.eps / 8, wide.tiny),
            # float16 has little room: slopes beyond 4094 saturate there.
            steepest=info.max * ldexp(1.0, -4 if dtype == torch.float16 else -20),
        )


def below(entries: Tensor, sizes: Tensor, limits: Limits) -> Tensor:
    """``entries - sizes``, rounded down to the dtype of ``entries``; finite."""
    wide, dtype = widened(entries), entries.dtype
    exact = wide - sizes
    step = exact - wide
    error = (wide - (exact - step)) - (sizes + step)  # the difference itself is exact + error
    rounded = exact.to(dtype)
    if dtype.itemsize < 4 and torch.compiler.is_compiling() and not _private.is_exporting():
        # Compilers keep half-precision values in float32 unless they are made from integers.
        rounded = number(rank(rounded), dtype)
    found = widened(rounded)
    next_lower = found + (found * (0.75 * torch.finfo(dtype).eps)).clamp(max=-limits.smallest)
    lowered = torch.where(found - exact > error, next_lower.to(dtype), rounded)
    return lowered.clamp(min=limits.lowest)


def rank(numbers: Tensor) -> Tensor:
    """Integers that are ordered as the numbers are; those of both zeros are zero."""
    integer = _INTEGERS[numbers.dtype.itemsize]
    bits = numbers.contiguous().view(integer).long()
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def number(ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of ``dtype`` with these ranks."""
    integer = _INTEGERS[dtype.itemsize]
    return torch.where(ranks < 0, torch.iinfo(integer).min - ranks, ranks).to(integer).view(dtype)


def _round_away(value: float, info: torch.finfo) -> float:
    """The smallest number of the dtype that is at least the positive ``value``."""
    # In exponents, since the distance to the next number may be a subnormal, flushed to zero.
    exponent = max(frexp(value)[1], frexp(info.tiny)[1]) + frexp(info.eps)[1] - 2
    return ldexp(ceil(ldexp(value, -exponent)), exponent)
