"""Processes that others are forked from. Their start takes long, so nothing is imported here."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from unittest import mock


class Source:
    """A process that has imported ``modules``, if they are there, and does nothing but fork."""

    def __init__(self, *modules: str):
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload(list(modules))

    def start(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores
        self.server.ensure_running()

    def fork(
        self, target: Callable[..., None], *arguments: object, daemon: bool = False
    ) -> BaseProcess:
        """A process that runs ``target``."""
        self.start()
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=target, args=arguments, daemon=daemon)
        connect = self.server.connect_to_new_process
        with mock.patch.object(forkserver, "connect_to_new_process", connect):
            process.start()
        return process


RANKS = Source(
    "pytest",
    "torch.testing",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.experimental",
    "torch.distributed.checkpoint.state_dict",
    "lightning.fabric",  # seconds
    "tests.ranks.harness.compiled",
    "tests.ranks.kinds",
    "tests.ranks.layouts",
)
#: Ready long before: the tests of the harness mostly wait, which they do while the other starts.
BARE = Source("pytest", "torch.distributed")
