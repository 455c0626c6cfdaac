"""What becomes of a diagonal that is assigned: kept, reflected, lowered or refused."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from negdiag_param._maths.limits import Limits, below, exact_dtype

# What users choose from, and what "warn" is where a weight is initialised.
Infeasible = Literal["warn", "reflect", "error", "initial"]
INFEASIBLE: tuple[Infeasible, ...] = ("warn", "reflect", "error")
_COUNTS = ("entries", "not_finite", "infeasible", "moved", "too_large")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a diagonal, or with its parts taken together."""

    entries: int = 0
    not_finite: int = 0
    infeasible: int = 0
    moved: int = 0  # of these, to just outside of the bound, since reflecting is not enough
    too_large: int = 0  # rows or columns that leave no room for a diagonal entry
    largest: float = -torch.inf  # of the infeasible entries, less what they have to outweigh
    place: str = ""  # of that one
    smallest: float = torch.inf  # of the same
    dominance: str = ""

    def __add__(self, other: "Verdict") -> "Verdict":
        worse = max(self, other, key=lambda verdict: verdict.largest)
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        smallest, dominance = min(self.smallest, other.smallest), self.dominance or other.dominance
        return replace(worse, smallest=smallest, dominance=dominance, **counts)

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
        # A diagonal that was set or learnt: of a default initialisation, half is positive.
        constant = self.smallest == self.largest and self.infeasible == self.entries > 1
        meant = not self.dominance and self.largest < 0 and (constant or self.entries >= 8)
        silent = infeasible == "reflect" or (infeasible == "initial" and not meant)
        if silent or not self.infeasible:
            return None
        if self.dominance:
            bound = f"<= {-limits.margin}" if limits.margin else "< 0"
            wanted = f"a diagonal that dominates its {lines}, W_ii + sum |W_ij| {bound} "
            wanted += f"(dominance={self.dominance!r})"
            failing = f"{lines} that fail, {self.place} by {self.largest + limits.margin:.6g}"
        else:
            at_most = f"a diagonal of at most {-limits.margin}"
            wanted = at_most if limits.margin else "a negative diagonal"
            failing = f"entries that are not, the largest {self.largest:.6g}"
        message = f"expected {wanted}, got {self.infeasible} of {self.entries} {failing}"
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


@dataclass(frozen=True)
class Assigned:
    """Diagonal entries that are assigned, with what they have to outweigh, shaped as they are."""

    entries: Tensor
    limits: Limits
    sizes: Tensor | None = None  # absolute sums, rounded up: what the map's values are lowered by
    exact: Tensor | float = 0.0  # nearly the same sums; NaN if not all that is summed is finite
    dominance: str = ""
    offset: int = 0  # of the diagonal

    @cached_property
    def failing(self) -> Tensor:
        """Which entries do not outweigh what they have to, by the margin."""
        return ~((self.total <= -self.limits.margin) & (self.total < 0))

    @cached_property
    def total(self) -> Tensor:
        """The entries and what they have to outweigh, added as good as exactly."""
        return self.entries.to(exact_dtype(self.entries)) + self.exact

    def verdict(self) -> Verdict:
        """Counts what is not finite and what is infeasible, and finds the worst of that."""
        entries, limits, sizes = self.entries, self.limits, self.sizes
        total, failing = self.total, self.failing
        verdict = Verdict(
            entries=entries.numel(),
            not_finite=int((~entries.isfinite() | total.isnan()).sum()),
            infeasible=int(failing.sum()),
            too_large=0 if sizes is None else int((sizes - limits.bound > -limits.lowest).sum()),
            dominance=self.dominance,
        )
        if not verdict.infeasible:
            return verdict
        worst, place = total.where(failing, -torch.inf).argmax(), ""
        if self.dominance:
            *matrix, index = (int(i) for i in torch.unravel_index(worst, total.shape))
            line = "column" if self.dominance == "columns" else "row"
            place = f"{line} {index + abs(self.offset)}"
            place += f" of matrix {', '.join(map(str, matrix))}" if matrix else ""
        moved = int((failing & (entries.abs().neg() >= limits.bound)).sum())
        smallest, largest = (
            total.where(failing, torch.inf).min().item(),
            total.flatten()[worst].item(),
        )
        return replace(verdict, moved=moved, largest=largest, place=place, smallest=smallest)

    def feasible(self) -> Tensor:
        """The entries with the infeasible ones changed.

        They are mirrored, ``d -> -|d|``, or set a little below the bound. With ``sizes`` they are
        lowered as far as needed and a little further, and those at the boundary itself, within the
        rounding of the sums, by so much.
        """
        entries, limits = self.entries, self.limits
        if self.sizes is None:
            mirrored = entries.abs().neg()
            changed = torch.where(mirrored < limits.bound, mirrored, limits.inside)
            return torch.where(self.failing, changed, entries)
        edges = (torch.full_like(entries, edge) for edge in (limits.bound, limits.inside))
        bound, inside = (below(edge, self.sizes, limits) for edge in edges)
        return torch.where(self.failing, inside, torch.minimum(entries, bound))
