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
    dominance: str = ""
    name: str = ""  # of the row or column that fails by ``largest``
    too_large: int = 0  # rows or columns that leave no room for a diagonal entry

    def __add__(self, other: "Verdict") -> "Verdict":
        worse = max(self, other, key=lambda verdict: verdict.largest)
        return Verdict(
            self.entries + other.entries,
            self.not_finite + other.not_finite,
            self.infeasible + other.infeasible,
            self.moved + other.moved,
            worse.largest,
            self.dominance or other.dominance,
            worse.name,
            self.too_large + other.too_large,
        )

    def warning(self, limits: Limits, infeasible: Infeasible) -> str | None:
        """What to warn of before entries are changed, if anything; raises what is refused."""
        lines = "columns" if self.dominance == "columns" else "rows"
        if self.not_finite:
            finite = f"finite {lines}" if self.dominance else "a finite diagonal"
            what = f"{lines} with NaN or infinity" if self.dominance else "entries NaN or infinite"
            raise ValueError(f"expected {finite}, got {self.not_finite} of {self.entries} {what}")
        if self.too_large:
            raise ValueError(
                f"expected {lines} that a diagonal entry can dominate, got {self.too_large} of "
                f"{self.entries} whose absolute sum is beyond the largest number of the dtype"
            )
        if not self.infeasible or infeasible == "reflect":
            return None
        if self.dominance:
            bound = f"<= {-limits.margin}" if limits.margin else "< 0"
            message = (
                f"expected a diagonal that dominates its {lines}, W_ii + sum |W_ij| {bound} "
                f"(dominance={self.dominance!r}), got {self.infeasible} of {self.entries} {lines} "
                f"that fail, {self.name} by {self.largest:.6g}"
            )
        else:
            message = self._not_negative(limits)
        if infeasible == "error":
            raise ValueError(message)
        return message

    def changes(self, limits: Limits) -> str:
        """What becomes of the infeasible entries."""
        if self.dominance:
            return f"{self.infeasible} lowered as far as needed"
        counts = {
            "reflected, d -> -|d|": self.infeasible - self.moved,
            f"set to {limits.inside:.6g}, as -|d| is not below {-limits.margin or 0:g}": self.moved,
        }
        return "; ".join(f"{count} {change}" for change, count in counts.items() if count)

    def _not_negative(self, limits: Limits) -> str:
        at_most = f"a diagonal of at most {-limits.margin}"
        wanted = at_most if limits.margin else "a negative diagonal"
        return (
            f"expected {wanted}, got {self.infeasible} of {self.entries} entries that "
            f"are not, the largest {self.largest:.6g}"
        )


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
