"""Processes that others are forked from. Their start takes long, so nothing is imported here."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "pytest",
    "torch.testing",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.experimental",
    "torch.distributed.checkpoint.state_dict",
    "lightning.fabric",  # seconds
    "tests.ranks.compiled",
    "tests.ranks.kinds",
])


def start() -> None:
    """Starts the process that has imported these, if they are there, and does nothing but fork."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores
    forkserver.ensure_running()


def fork(target: Callable[..., None], *arguments: object, daemon: bool = False) -> BaseProcess:
    """A process that runs ``target``."""
    start()
    process = CONTEXT.Process(target=target, args=arguments, daemon=daemon)
    process.start()
    return process
