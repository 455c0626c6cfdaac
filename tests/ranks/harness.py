"""Runs checks on the ranks of real process groups and brings every outcome home."""

import contextlib
import faulthandler
import functools
import gc
import importlib
import inspect
import os
import resource
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from inspect import Parameter, signature
from multiprocessing import Pipe, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from tests.ranks import forks

Check = Callable[..., None]
PATIENCE = 600.0  # seconds for a check, of which none takes two on an idle machine
GRACE = 2.0  # seconds for the other ranks once it has failed on one
ENOUGH = 10.0  # seconds for a process to end that is about to
GROUP_TIMEOUT = timedelta(hours=1)  # the parent ends what is stuck, long before


def on(*counts: int) -> Callable[[Check], Check]:
    """Runs a test on every rank of a process group, once for each number of ranks.

    Without numbers, a table that the test is parametrized over has them as ``ranks``. The test may
    have parameters and fixtures. The ranks get copies of them, and find the test by its name in
    its module.
    """

    def decorate(check: Check) -> Check:
        @functools.wraps(check)
        def test(groups: Groups, ranks: int, **arguments: object) -> None:
            if failure := groups.failure(check, ranks, **arguments):
                pytest.fail(failure, pytrace=False)

        ours = [Parameter(name, Parameter.KEYWORD_ONLY) for name in ("groups", "ranks")]
        theirs = [p.replace(kind=p.KEYWORD_ONLY) for p in signature(check).parameters.values()]
        test.__signature__ = signature(check).replace(parameters=[*ours, *theirs])
        if not counts:
            return test
        return pytest.mark.parametrize("ranks", counts, ids="{}-ranks".format)(test)

    return decorate


class Rank(NamedTuple):
    """The parent's side of one rank."""

    process: BaseProcess
    pipe: Connection
    stacks: Path

    def outcome(self) -> str:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(ENOUGH)
            return f"died with exit code {self.process.exitcode}\n{self.stack()}".strip()

    def stack(self) -> str:
        """What faulthandler wrote, down to where the check begins."""
        threads = self.stacks.read_text().partition("\nExtension modules")[0].split("\n\n")
        theirs = [thread for thread in threads if "in _end_with_the_parent" not in thread]
        return "\n".join(t.partition(f'\n  File "{__file__}"')[0] for t in theirs).strip()


class Group:
    """A process group that is whole: it is given up with the first check that fails in it."""

    def __init__(self, count: int, folder: Path):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.ranks: list[Rank] = []
        for rank in range(count):
            pipe, theirs = Pipe()
            stacks = folder / f"stacks-{count}-{rank}"
            process = forks.fork(run, rank, count, self.store.port, theirs, stacks, daemon=True)
            theirs.close()
            self.ranks.append(Rank(process, pipe, stacks))

    def failure(self, what: str, patience: float = PATIENCE, order: object = None) -> str:
        """How ``what`` the ranks do now failed, or nothing once all of them have done it."""
        for rank in self.ranks if order else []:
            with contextlib.suppress(BrokenPipeError):  # who died has no outcome
                rank.pipe.send(order)
        outcomes: dict[int, str] = {}
        end = time.monotonic() + patience
        while left := {rank.pipe: i for i, rank in enumerate(self.ranks) if i not in outcomes}:
            ready = wait(list(left), timeout=max(end - time.monotonic(), 0))
            if not ready:
                break
            outcomes |= {left[pipe]: self.ranks[left[pipe]].outcome() for pipe in ready}
            if any(outcomes.values()):
                end = min(end, time.monotonic() + GRACE)
        failed = [f"it failed on rank {i}" for i, text in outcomes.items() if text]
        if not left and not failed:
            return ""
        first = failed[0] if failed else f"it took longer than {patience:g} s"
        lines = [f"{what} on {len(self.ranks)} ranks: {first}"]
        for i, rank in enumerate(self.ranks):
            if i in outcomes:
                lines.append(f"rank {i}: {outcomes[i] or 'came to its end'}")
            else:
                os.kill(rank.process.pid, signal.SIGABRT)
                rank.process.join(ENOUGH)
                lines.append(f"rank {i} was still in it, at\n{rank.stack()}")
        self.kill()
        return "\n".join(lines)

    def kill(self) -> None:
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()


class Groups:
    """A group for every number of ranks that is asked for, renewed where one was given up."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.groups: dict[int, Group] = {}

    def failure(
        self, check: Check, count: int, patience: float = PATIENCE, **arguments: object
    ) -> str:
        """How ``check(**arguments)`` failed on that many ranks, or nothing."""
        group = self.groups.pop(count, None)
        if group is None:
            group = Group(count, self.folder)
            if failure := group.failure("the start"):
                return failure
        order = check.__module__, check.__name__, arguments
        try:
            failure = group.failure(check.__name__, patience, order)
        except BaseException:  # the test is interrupted
            group.kill()
            raise
        if not failure:
            self.groups[count] = group
        return failure

    def close(self) -> None:
        for group in self.groups.values():
            group.kill()


def run(rank: int, ranks: int, port: int, pipe: Connection, stacks: Path) -> None:
    """One rank: runs the checks that it is sent, and answers how each ended, as well as the start.

    An empty text is the answer for what went well.
    """
    with stacks.open("w") as file:
        faulthandler.enable(file)  # of SIGABRT too, with which the parent asks where we stand
        gc.freeze()  # what was imported is nothing to look through again and again
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        todo = functools.partial(_join, rank, ranks, port)
        while True:
            try:
                todo()
            except BaseException:
                pipe.send(traceback.format_exc())
            else:
                pipe.send("")
            todo = functools.partial(_check, *pipe.recv())
            faulthandler.disable()  # some checks have put another handler in its place
            faulthandler.enable(file)


def _end_with_the_parent() -> None:
    parent_process().join()
    os._exit(1)


def _join(rank: int, ranks: int, port: int) -> None:
    # What torchrun says, for those who ask the environment.
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1", "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=GROUP_TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=GROUP_TIMEOUT)


def _check(module: str, name: str, arguments: dict[str, object]) -> None:
    # Under its name stands the test, and the check inside.
    check = inspect.unwrap(getattr(importlib.import_module(module), name))
    torch.manual_seed(0)
    check(**arguments)
