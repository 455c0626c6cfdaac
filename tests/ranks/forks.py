"""The process that ranks are forked from. Its start takes long, so nothing is imported here."""

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

IMPORTED = [
    "pytest",
    "torch.testing",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.experimental",
    "torch.distributed.checkpoint.state_dict",
    "lightning.fabric",  # seconds; who has none of it goes on without
    "tests.ranks.harness.compiled",
    "tests.ranks.kinds",
    "tests.ranks.layouts",
]


def start() -> None:
    """Has the process that all ranks are forked from import what they will need."""
    forkserver.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def forked(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process to be forked from one that has imported PyTorch and does nothing else."""
    start()
    return multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
