"""Measures jobs against a unit job, interleaved, so that a change of pace hits both alike."""

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """Something to run again and again, inside a block that is entered once per sample."""

    run: Callable[[], object]
    block: Callable[[], AbstractContextManager[object]] = nullcontext


def cleared(tensors: Iterable[Tensor], run: Callable[[], object]) -> Callable[[], None]:
    """Runs it after the gradients of these have gone."""
    tensors = list(tensors)

    def step() -> None:
        for tensor in tensors:
            tensor.grad = None
        run()

    return step


@dataclass(frozen=True)
class Ratio:
    """The time of a job in units of another's: the median over rounds and both quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.median < 100 else 0
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Meter:
    """How to measure: where, and for how long each job at least."""

    device: torch.device
    seconds: float
    sample_seconds: float = 1e-3
    rounds: tuple[int, int] = (5, 1001)

    def compare(self, unit: Job, jobs: Mapping[str, Job]) -> dict[str, Ratio]:
        """Runs unit, job, unit, job, ... and divides every job by the unit just before it."""
        unit_repeats = self._repeats(unit)
        repeats = {name: self._repeats(job) for name, job in jobs.items()}
        ratios: dict[str, list[float]] = {name: [] for name in jobs}
        fewest, most = self.rounds
        end = perf_counter() + self.seconds * len(jobs)
        with _collected():
            for done in range(most):
                if done >= fewest and perf_counter() > end:
                    break
                for name, job in jobs.items():
                    base = self._sample(unit, unit_repeats)
                    ratios[name].append(self._sample(job, repeats[name]) / base)
        quartiles = {name: statistics.quantiles(samples, n=4) for name, samples in ratios.items()}
        return {name: Ratio(q[1], q[0], q[2]) for name, q in quartiles.items()}

    def _repeats(self, job: Job) -> int:
        """How often a job runs in a sample, so that the clock's own cost does not count."""
        repeats = 1
        # The best of a few, as a single hiccup would pass for a slow job.
        while (once := min(self._sample(job, repeats) for _ in range(3))) * repeats < (
            self.sample_seconds
        ):
            repeats = max(repeats + 1, min(10 * repeats, int(1.1 * self.sample_seconds / once)))
        return repeats

    def _sample(self, job: Job, repeats: int) -> float:
        """Seconds per run."""
        with job.block():
            # The first run fills caches, those of the processor and those of the block.
            job.run()
            if self.device.type == "cuda":
                return self._on_cuda(job, repeats)
            start = perf_counter()
            for _ in range(repeats):
                job.run()
            return (perf_counter() - start) / repeats

    def _on_cuda(self, job: Job, repeats: int) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            job.run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / repeats


@contextmanager
def _collected() -> Iterator[None]:
    """Keeps the garbage collector out of the samples."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
