"""How times and memory are measured, and the tables that they are shown in."""

import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TypeAlias

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


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


def compare(unit: Job, jobs: Mapping[str, Job], seconds: float) -> dict[str, Ratio]:
    """Runs unit, job, unit, job, ... and divides every job by the unit just before it.

    For so many seconds for each job, but five rounds at least.
    """
    unit_repeats = _repeats(unit)
    repeats = {name: _repeats(job) for name, job in jobs.items()}
    ratios: dict[str, list[float]] = {name: [] for name in jobs}
    rounds, end = 0, perf_counter() + seconds * len(jobs)
    gc.collect()
    gc.disable()  # it stays out of the samples
    try:
        while rounds < 5 or perf_counter() < end:
            rounds += 1
            for name, job in jobs.items():
                base = _sample(unit, unit_repeats)
                ratios[name].append(_sample(job, repeats[name]) / base)
    finally:
        gc.enable()
    quartiles = {name: statistics.quantiles(samples, n=4) for name, samples in ratios.items()}
    return {name: Ratio(median, low, high) for name, (low, median, high) in quartiles.items()}


def _repeats(job: Job, seconds: float = 1e-3) -> int:
    """How often a job runs in a sample, so that the clock's own cost does not count."""
    repeats = 1
    # The best of a few, as a single hiccup would pass for a slow job.
    while (once := min(_sample(job, repeats) for _ in range(3))) * repeats < seconds:
        repeats = max(repeats + 1, min(10 * repeats, int(1.1 * seconds / once)))
    return repeats


def _sample(job: Job, repeats: int) -> float:
    """Seconds per run."""
    waits = torch.get_default_device().type == "cuda"
    with job.block():
        job.run()  # fills caches, those of the processor and those of the block
        if waits:
            torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(repeats):
            job.run()
        if waits:
            torch.cuda.synchronize()
        return (perf_counter() - start) / repeats


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that the second of two steps holds at once, beyond what was there before."""
    step()
    if torch.get_default_device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))  # the form that names every event
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


Cell: TypeAlias = Ratio | float | int | str


@dataclass
class Table:
    """Rows by name, each with its cells by column; what is not measured stays empty."""

    title: str
    unit: str
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def put(self, column: str, cells: Mapping[str, Cell]) -> None:
        """Fills one column."""
        for row, cell in cells.items():
            self.rows.setdefault(row, {})[column] = cell

    def markdown(self) -> str:
        """The table under its title."""
        columns = list(dict.fromkeys(column for cells in self.rows.values() for column in cells))
        lines = [["", *columns], ["---", *("---:" for _ in columns)]]
        lines += [
            [name, *(_text(cells.get(column, "")) for column in columns)]
            for name, cells in self.rows.items()
        ]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{self.unit}\n\n{body}\n"


def tell(progress: str) -> None:
    """To the screen, not into the report."""
    print(progress, file=sys.stderr, flush=True)


def _text(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
