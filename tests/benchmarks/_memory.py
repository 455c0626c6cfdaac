"""The most memory that a step holds at once, beyond what was there before."""

from collections.abc import Callable

import torch

from tests.benchmarks import _trace


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Counts every allocation of the second of two steps."""
    step()
    if device.type == "cuda":
        return _peak_on_cuda(step)
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in _trace.events(step, device, memory=True)
        if event["name"] == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def _peak_on_cuda(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
