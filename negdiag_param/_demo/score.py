"""Who forecasts better, window by window and on the whole."""

from dataclasses import dataclass
from statistics import fmean, median

from torch import Tensor

TIE = 0.01  # errors that differ by less than this part of themselves


@dataclass(frozen=True)
class Score:
    """The errors of forecasts of the same windows, free and constrained."""

    free: Tensor
    constrained: Tensor

    def of(self, windows: list[bool]) -> "Score":
        """The score of some of the windows."""
        return Score(self.free[windows], self.constrained[windows])

    @property
    def signs(self) -> list[int]:
        """For each window 1 if the constraint wins, -1 if it loses, 0 for a tie."""
        return [
            compare(*pair)
            for pair in zip(self.free.tolist(), self.constrained.tolist(), strict=True)
        ]

    @property
    def verdict(self) -> int:
        """1 if the constraint wins on the whole, -1 if it loses, 0 if it does neither.

        It wins or loses only if the mean error, the median error and the number of windows agree,
        or abstain.
        """
        free, constrained = self.free.tolist(), self.constrained.tolist()
        voices = {
            compare(fmean(free), fmean(constrained)),
            compare(median(free), median(constrained)),
            compare(self.signs.count(1), self.signs.count(-1), tie=0),
        }
        return sum(voices)  # of a set, in which those who agree speak once


def compare(free: float, constrained: float, tie: float = TIE) -> int:
    """1 if the second error is the smaller one, -1 if it is the larger one, 0 for a tie."""
    if free == constrained or abs(free - constrained) < tie * max(free, constrained):
        return 0
    return 1 if constrained < free else -1
