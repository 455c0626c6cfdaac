"""The most memory that a step holds at once, beyond what was there before."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Counts every allocation of the second of two steps."""
    step()
    if device.type == "cuda":
        return _peak_on_cuda(step)
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in _events(step)
        if event["name"] == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def _events(step: Callable[[], object]) -> list[dict[str, Any]]:
    """By the exported trace, the one form that names everything."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        return list(json.loads(path.read_text())["traceEvents"])


def _peak_on_cuda(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
