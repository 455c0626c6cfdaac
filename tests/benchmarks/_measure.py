"""How times, memory and kernels are measured, and the tables that they are shown in."""

import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
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


def _events(run: Callable[[], object], device: torch.device, **options: bool) -> list[dict]:
    """What the profiler saw of one run, by its exported trace: the form that names everything."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (device.type == "cuda")]
    with profile(activities=activities, **options) as trace:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        found: dict[str, Any] = json.loads(path.read_text())
    return found["traceEvents"]


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that the second of two steps holds at once, beyond what was there before."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    events = _events(step, device, profile_memory=True)
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def kernels(run: Callable[[], object]) -> int:
    """How many kernels, copies and fills one run launches."""
    run()
    torch.cuda.synchronize()
    launched = {"kernel", "gpu_memcpy", "gpu_memset"}
    return sum(event.get("cat") in launched for event in _events(run, torch.device("cuda")))


def captured_step(layer: nn.Module, x: Tensor) -> Job:
    """A compiled train step with SGD as a CUDA graph; each run replays it."""
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled(x).square().mean().backward()
        optimizer.step()

    # Capture wants every lazy set-up done, on a stream that is not the default one.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return Job(graph.replay)


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
            [name, *(_text(cells.get(column)) for column in columns)]
            for name, cells in self.rows.items()
        ]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{self.unit}\n\n{body}\n"


def tell(progress: str) -> None:
    """To the screen, not into the report."""
    print(progress, file=sys.stderr, flush=True)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
