"""What one run needs beside time: memory, kernels, and for a CUDA graph a capture."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks._timing import Job


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
