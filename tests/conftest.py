"""Set-ups of every test."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Imports PyTorch only now, so that other set-ups can start what imports it as well."""
    import torch

    # The tensors are small: a second thread would only be waited for, above all on a busy machine.
    torch.set_num_threads(1)

    # The compiler's cache on disk does not tell the levels of vectorization of a CPU apart.
    level = torch.backends.cpu.get_cpu_capability()
    cache = Path(tempfile.gettempdir(), f"negdiag_param-inductor-{torch.__version__}-{level}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips ``integration`` tests whose packages are not installed."""
    # Ranks, and results that take seconds, are made once if one worker has all tests that share
    # them: others steal from the end.
    shared = {item for item in items if item.get_closest_marker("xdist_group")}
    items.sort(key=lambda item: item not in shared and "results" not in item.fixturenames)
    for item in items:
        for mark in item.iter_markers("integration"):
            for package in mark.args:
                if find_spec(package) is None:
                    reason = f"{package} is not installed, but with the extra `integration`"
                    item.add_marker(pytest.mark.skip(reason=reason))
