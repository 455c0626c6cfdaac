"""Who forecasts better, window by window and on the whole."""

from dataclasses import dataclass

from torch import Tensor

TIE = 0.01  # errors that differ by less than this part of themselves


@dataclass(frozen=True)
class Score:
    """The errors of forecasts of the same windows, free and constrained."""

    free: Tensor
    constrained: Tensor

    def __getitem__(self, windows: slice) -> "Score":
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

        The mean errors and the number of windows each have a say.
        """
        windows = compare(self.signs.count(1), self.signs.count(-1), tie=0)
        errors = compare(float(self.free.mean()), float(self.constrained.mean()))
        both = errors + windows
        return (both > 0) - (both < 0)


def compare(free: float, constrained: float, tie: float = TIE) -> int:
    """1 if the second error is the smaller one, -1 if it is the larger one, 0 for a tie."""
    if free == constrained or abs(free - constrained) < tie * max(free, constrained):
        return 0
    return 1 if constrained < free else -1
