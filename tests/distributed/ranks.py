"""Runs checks on the ranks of a real process group and brings every outcome home."""

import gc
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Check = Callable[[Path], None]
GROUP_TIMEOUT = timedelta(seconds=30)
RUN_TIMEOUT = 100.0


def run(checks: Iterable[Check], ranks: int, folder: Path) -> dict[str, str]:
    """The tracebacks of the checks that failed on any of the ranks, by name."""
    folder.mkdir(exist_ok=True)
    outcomes = folder / f"outcomes-{ranks}"
    outcomes.mkdir()
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(rank, ranks, list(checks), folder, outcomes))
        for rank in range(ranks)
    ]
    deadline = time.monotonic() + RUN_TIMEOUT
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    failures = {}
    for check in checks:
        for rank in range(ranks):
            outcome = outcomes / f"{check.__name__}-{rank}"
            text = outcome.read_text() if outcome.exists() else "it never came to an end"
            if text:
                failures[check.__name__] = f"on rank {rank} of {ranks}: {text}"
    return failures


def _rank(rank: int, ranks: int, checks: list[Check], folder: Path, outcomes: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{outcomes}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=GROUP_TIMEOUT,
    )
    for check in checks:
        torch.manual_seed(0)
        try:
            check(folder)
        except BaseException:
            outcome = traceback.format_exc()
        else:
            outcome = ""
        (outcomes / f"{check.__name__}-{rank}").write_text(outcome)
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
