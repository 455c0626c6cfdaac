"""What becomes of a diagonal that is assigned: kept, reflected or refused."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from negdiag_param._maths.limits import Limits

Infeasible = Literal["warn", "reflect", "error"]
INFEASIBLE: tuple[Infeasible, ...] = ("warn", "reflect", "error")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a diagonal, or with its parts taken together."""

    entries: int = 0
    not_finite: int = 0
    infeasible: int = 0
    moved: int = 0  # of these, to just outside of the bound, since reflecting is not enough
    largest: float = -torch.inf

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            self.entries + other.entries,
            self.not_finite + other.not_finite,
            self.infeasible + other.infeasible,
            self.moved + other.moved,
            max(self.largest, other.largest),
        )

    def warning(self, limits: Limits, infeasible: Infeasible) -> str | None:
        """What to warn of before entries are changed, if anything; raises what is refused."""
        if self.not_finite:
            raise ValueError(
                f"expected a finite diagonal, got {self.not_finite} of {self.entries} entries NaN "
                f"or infinite"
            )
        if not self.infeasible or infeasible == "reflect":
            return None
        at_most = f"a diagonal of at most {-limits.margin}"
        wanted = at_most if limits.margin else "a negative diagonal"
        message = (
            f"expected {wanted}, got {self.infeasible} of {self.entries} entries that "
            f"are not, the largest {self.largest:.6g}"
        )
        if infeasible == "error":
            raise ValueError(message)
        return message

    def changes(self, limits: Limits) -> str:
        """What becomes of the infeasible entries."""
        counts = {
            "reflected, d -> -|d|": self.infeasible - self.moved,
            f"set to {limits.inside:.6g}, as -|d| is not below {-limits.margin or 0:g}": self.moved,
        }
        return "; ".join(f"{count} {change}" for change, count in counts.items() if count)


def judge(entries: Tensor, limits: Limits) -> Verdict:
    """Counts what is not finite, and what is not at most ``-margin`` and below zero."""
    infeasible = entries[_is_infeasible(entries, limits)]
    return Verdict(
        entries.numel(),
        not_finite=int((~entries.isfinite()).sum()),
        infeasible=infeasible.numel(),
        moved=int((infeasible.abs().neg() >= limits.bound).sum()),
        largest=infeasible.max().item() if infeasible.numel() else -torch.inf,
    )


def reflected(entries: Tensor, limits: Limits) -> Tensor:
    """``entries`` with the infeasible ones mirrored, ``d -> -|d|``, or a little below the bound."""
    mirrored = entries.abs().neg()
    mirrored = mirrored.where(mirrored < limits.bound, limits.inside)
    return torch.where(_is_infeasible(entries, limits), mirrored, entries)


def _is_infeasible(entries: Tensor, limits: Limits) -> Tensor:
    # Without a margin every negative number will do, also one that is subnormal, above the bound.
    return entries > limits.bound if limits.margin else entries >= 0
