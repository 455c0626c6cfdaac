"""Tells a rank that is stuck from one that is slow, on a machine as busy as it likes to be.

What waits for ever uses next to no processor time: 0.3 % of a core, in a collective of gloo. What
is slow, because others keep the machine busy, still gets its share. And what spins for ever uses
far more of it than any check needs, however long that takes by the clock.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

POLL = 0.1  # seconds
IDLE = 0.01  # of a core


@dataclass(frozen=True)
class Limits:
    """What no check comes near to."""

    patience: float = 120.0  # seconds in which no rank gets on, nor uses IDLE of a core
    processor: float = 300.0  # seconds of processor time of one rank in one check
    grace: float = 5.0  # the patience with the other ranks once the check has failed on one

    def after_failure(self) -> "Limits":
        return replace(self, patience=min(self.patience, self.grace))


class Watch:
    """Watches the processes ``pids`` until they have gone on for too long."""

    def __init__(self, pids: Iterable[int]):
        self.begun = {pid: processor_time(pid) for pid in pids}
        self.now = dict(self.begun)
        self.looked = time.monotonic()
        self.got_on()

    def got_on(self) -> None:
        """A rank did something that shows."""
        self.mark = sum(self.now.values())
        self.silence = 0.0

    def spent(self, pid: int) -> float:
        """Seconds of processor time since the watch began."""
        return self.now[pid] - self.begun[pid]

    def verdict(self, limits: Limits) -> str:
        """Why to give up, or nothing. To be asked every POLL seconds or so."""
        self.now = {pid: max(was, processor_time(pid)) for pid, was in self.now.items()}
        # Counted in looks, so that a watch that is itself held up does not blame the ranks.
        looked, self.looked = self.looked, time.monotonic()
        self.silence += min(self.looked - looked, 2 * POLL)
        if sum(self.now.values()) - self.mark > IDLE * limits.patience:
            self.got_on()
        if self.silence > limits.patience:
            return f"for {limits.patience:g} s no rank got on or used the processor"
        if any(self.spent(pid) > limits.processor for pid in self.now):
            return f"a rank used the processor for {limits.processor:g} s"
        return ""


def processor_time(pid: int) -> float:
    """Seconds, over all threads; zero for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
