"""What becomes of a diagonal that is assigned: kept, reflected or refused."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from negdiag_param._maps import Limits

Infeasible = Literal["warn", "reflect", "error"]
INFEASIBLE: tuple[Infeasible, ...] = ("warn", "reflect", "error")


def feasible(entries: Tensor, limits: Limits, infeasible: Infeasible, name: str) -> Tensor:
    """``entries`` with every one at most ``-margin`` and below zero.

    Feasible entries are kept as they are. Others are reflected, ``d -> -|d|``, and those that
    reflection leaves on or inside the boundary start a little outside of it.

    Args:
        entries: a diagonal, of any shape.
        limits: what is feasible in its dtype.
        infeasible: whether to reflect with a warning, silently, or not at all.
        name: the tensor's name, for messages.

    Returns:
        A diagonal of the same shape and dtype; ``entries`` itself if all of it is feasible.

    Raises:
        ValueError: if an entry is NaN or infinite, or infeasible under ``"error"``.
    """
    if not entries.isfinite().all():
        raise ValueError(
            f"{name}: expected a finite diagonal, got {_count(~entries.isfinite())} entries NaN "
            f"or infinite, shape {tuple(entries.shape)}, {entries.dtype}"
        )
    outside = entries > limits.bound
    if not outside.any():
        return entries
    below = f"below {-limits.margin}" if limits.margin else "negative"
    message = (
        f"{name}: expected a diagonal {below}, got {_count(outside)} entries that are not, "
        f"the largest {entries.max().item():.6g}, {entries.dtype}"
    )
    if infeasible == "error":
        raise ValueError(message)
    if infeasible == "warn":
        # The assignment in the user's code lies this far up.
        warnings.warn(f"{message}; they are reflected, d -> -|d|", UserWarning, stacklevel=7)
    reflected = entries.abs().neg()
    reflected = reflected.where(reflected < limits.bound, limits.inside)
    return torch.where(outside, reflected, entries)


def _count(mask: Tensor) -> str:
    return f"{int(mask.sum())} of {mask.numel()}"
