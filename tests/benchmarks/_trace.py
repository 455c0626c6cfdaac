"""What the profiler saw of one run, by its exported trace: the one form that names everything."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def events(
    run: Callable[[], object], device: torch.device, memory: bool = False
) -> list[dict[str, Any]]:
    """The events of one run, in the Chrome trace format."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=memory) as trace:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        return list(json.loads(path.read_text())["traceEvents"])
