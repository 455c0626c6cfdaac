"""How far a fit is, for those who watch."""

import sys


class Progress:
    """A bar in a terminal, nothing elsewhere."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.terminal = sys.stderr.isatty()

    def show(self, step: int) -> None:
        """Shows one step, if it is time to, and clears the line after the last."""
        last = step == self.steps
        if self.terminal and (last or step % 20 == 1):
            bar = f"{'#' * (40 * step // self.steps):<40}"
            line = "" if last else f"{self.name:<11} [{bar}] {step}/{self.steps}"
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
