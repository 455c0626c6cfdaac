"""One rank: runs the checks that it is sent, one after the other, and answers how each ended."""

import faulthandler
import gc
import importlib
import inspect
import os
import resource
import threading
import traceback
import warnings
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

# The parent ends what is stuck, long before.
GROUP_TIMEOUT = timedelta(hours=1)


def main(rank: int, ranks: int, port: int, pipe: Connection, stacks: Path) -> None:
    """Answers an empty text for what went well: first for the start, then for every check."""
    with stacks.open("w") as file:
        faulthandler.enable(file)  # of SIGABRT too, with which the parent asks where we stand
        gc.freeze()  # what was imported is nothing to look through again and again
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        pipe.send(_outcome(_join, rank, ranks, port))
        while (order := pipe.recv()) is not None:
            pipe.send(_outcome(_check, *order))
        pipe.send(_outcome(_leave))
        faulthandler.disable()


def _end_with_the_parent() -> None:
    parent_process().join()
    os._exit(1)


def _outcome(function, *arguments) -> str:
    try:
        function(*arguments)
    except BaseException:
        return traceback.format_exc()
    return ""


def _join(rank: int, ranks: int, port: int) -> None:
    # What torchrun says, for those who ask the environment.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=GROUP_TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=GROUP_TIMEOUT)


def _check(module: str, name: str, arguments: dict[str, object]) -> None:
    # Under its name stands the test, and the check inside.
    check = inspect.unwrap(getattr(importlib.import_module(module), name))
    torch.manual_seed(0)
    check(**arguments)


def _leave() -> None:
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
