"""What becomes of a diagonal that is assigned: kept, reflected, lowered or refused."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from negdiag_param._maths.limits import Limits, below, exact_dtype, widened

# What users choose from, and what "warn" is where a weight is initialised.
Infeasible = Literal["warn", "reflect", "error", "initial"]
INFEASIBLE: tuple[Infeasible, ...] = ("warn", "reflect", "error")
_COUNTS = ("entries", "not_finite", "infeasible", "moved", "too_large")


class Sizes(NamedTuple):
    """What diagonal entries have to outweigh, shaped as they are: absolute sums, or nothing."""

    up: Tensor  # rounded up: what the map's values are lowered by
    exact: Tensor  # nearly: what entries are judged by; NaN if not all that is summed is finite

    @classmethod
    def nothing(cls, entries: Tensor) -> "Sizes":
        """Those of entries that outweigh nothing."""
        zeros = torch.zeros_like(widened(entries))
        return cls(zeros, zeros.to(exact_dtype(entries)))


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
        if not self.infeasible or infeasible == "reflect":
            return None
        if infeasible == "initial" and not self._is_meant:
            return None
        if self.dominance:
            bound = f"<= {-limits.margin}" if limits.margin else "< 0"
            message = (
                f"expected a diagonal that dominates its {lines}, W_ii + sum |W_ij| {bound} "
                f"(dominance={self.dominance!r}), got {self.infeasible} of {self.entries} {lines} "
                f"that fail, {self.place} by {self.largest + limits.margin:.6g}"
            )
        else:
            at_most = f"a diagonal of at most {-limits.margin}"
            message = (
                f"expected {at_most if limits.margin else 'a negative diagonal'}, got "
                f"{self.infeasible} of {self.entries} entries that are not, the largest "
                f"{self.largest:.6g}"
            )
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

    @property
    def _is_meant(self) -> bool:
        """Whether the diagonal was set or learnt: of a default initialisation, half is positive."""
        constant = self.smallest == self.largest and self.infeasible == self.entries > 1
        return not self.dominance and self.largest < 0 and (constant or self.entries >= 8)


def judge(
    entries: Tensor, sizes: Sizes, limits: Limits, dominance: str = "", offset: int = 0
) -> Verdict:
    """Counts what is not finite and what is infeasible, and finds the worst of that."""
    total = entries.to(sizes.exact.dtype) + sizes.exact
    failing = is_infeasible(entries, sizes, limits)
    verdict = Verdict(
        entries=entries.numel(),
        not_finite=int((~entries.isfinite() | sizes.exact.isnan()).sum()),
        infeasible=int(failing.sum()),
        moved=int((failing & (entries.abs().neg() >= limits.bound)).sum()),
        too_large=int((sizes.up - limits.bound > -limits.lowest).sum()),
        dominance=dominance,
    )
    if not verdict.infeasible:
        return verdict
    worst, place = total.where(failing, -torch.inf).argmax(), ""
    if dominance:
        *matrix, index = (int(i) for i in torch.unravel_index(worst, total.shape))
        place = f"{'column' if dominance == 'columns' else 'row'} {index + abs(offset)}"
        place += f" of matrix {', '.join(map(str, matrix))}" if matrix else ""
    smallest = total.where(failing, torch.inf).min().item()
    return replace(verdict, largest=total.flatten()[worst].item(), place=place, smallest=smallest)


def feasible(entries: Tensor, sizes: Sizes, limits: Limits, dominance: str = "") -> Tensor:
    """``entries`` with the infeasible ones changed.

    They are mirrored, ``d -> -|d|``, or set a little below the bound. With ``dominance`` they are
    lowered as far as needed and a little further, and those at the boundary itself, within the
    rounding of the sums, by so much.
    """
    bound, inside = (
        below(torch.full_like(entries, value), sizes.up, limits)
        for value in (limits.bound, limits.inside)
    )
    kept, changed = torch.minimum(entries, bound), inside
    if not dominance:
        mirrored = entries.abs().neg()
        changed = torch.where(mirrored < bound, mirrored, inside)
    return torch.where(is_infeasible(entries, sizes, limits), changed, kept)


def is_infeasible(entries: Tensor, sizes: Sizes, limits: Limits) -> Tensor:
    """Which entries do not outweigh what they have to, by the margin."""
    total = entries.to(sizes.exact.dtype) + sizes.exact
    return ~((total <= -limits.margin) & (total < 0))
