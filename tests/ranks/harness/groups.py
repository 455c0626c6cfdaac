"""The parent's side of process groups that stay for many checks, each for one number of ranks."""

import contextlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

from tests.ranks.forks import Source
from tests.ranks.harness import rank as child

Check = Callable[..., None]
PATIENCE = 600.0  # seconds for a check, of which none takes two on an idle machine
GRACE = 2.0  # seconds for the other ranks once it has failed on one
ENOUGH = 10.0  # seconds for a process to end that is about to


class Rank(NamedTuple):
    process: BaseProcess
    pipe: Connection
    stacks: Path


class Group:
    """A process group that is whole: it is given up with the first check that fails in it."""

    def __init__(self, count: int, folder: Path, source: Source):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.ranks: list[Rank] = []
        for rank in range(count):
            pipe, theirs = multiprocessing.Pipe()
            stacks = folder / f"stacks-{rank}"
            arguments = (rank, count, self.store.port, theirs, stacks)
            process = source.fork(child.main, *arguments, daemon=True)
            theirs.close()
            self.ranks.append(Rank(process, pipe, stacks))

    def send(self, order: object) -> None:
        for rank in self.ranks:
            with contextlib.suppress(BrokenPipeError):  # who died has no outcome
                rank.pipe.send(order)

    def failure(self, what: str, patience: float = PATIENCE) -> str:
        """How ``what`` the ranks do now failed, or nothing once all of them have done it."""
        outcomes: dict[int, str] = {}
        end = time.monotonic() + patience
        while left := {rank.pipe: i for i, rank in enumerate(self.ranks) if i not in outcomes}:
            ready = wait(list(left), timeout=max(end - time.monotonic(), 0))
            if not ready:
                break
            outcomes |= {left[pipe]: self.outcome(self.ranks[left[pipe]]) for pipe in ready}
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
                lines.append(f"rank {i} was still in it, at\n{stack(rank)}")
        self.kill()
        return "\n".join(lines)

    def outcome(self, rank: Rank) -> str:
        try:
            return rank.pipe.recv()
        except (EOFError, ConnectionResetError):
            rank.process.join(ENOUGH)
            return f"died with exit code {rank.process.exitcode}\n{stack(rank)}".strip()

    def kill(self) -> None:
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()


def stack(rank: Rank) -> str:
    """What faulthandler wrote, down to where the check begins, without what is ours."""
    text = rank.stacks.read_text().removeprefix("Fatal Python error: Aborted\n\n")
    threads = text.partition("\nExtension modules")[0].split("\n\n")
    theirs = [thread for thread in threads if "in _end_with_the_parent" not in thread]
    inner = [
        re.sub(rf'\n  File "{re.escape(child.__file__)}".*', "", t, flags=re.S) for t in theirs
    ]
    return "\n".join(inner).strip()


class Groups:
    """A group for every number of ranks that is asked for, renewed where one was given up."""

    def __init__(self, folder: Path, source: Source):
        self.folder = folder
        self.source = source
        self.groups: dict[int, Group] = {}

    @classmethod
    @contextlib.contextmanager
    def at(cls, folder: Path, source: Source) -> "Iterator[Groups]":
        """For a fixture, which fails where they do not leave in order."""
        groups = cls(folder, source)
        yield groups
        if failure := groups.close():
            pytest.fail(failure, pytrace=False)

    def failure(
        self, check: Check, count: int, patience: float = PATIENCE, **arguments: object
    ) -> str:
        """How ``check(**arguments)`` failed on that many ranks, or nothing."""
        group = self.groups.pop(count, None)
        if group is None:
            folder = self.folder / str(count)
            folder.mkdir(exist_ok=True)
            group = Group(count, folder, self.source)
            if failure := group.failure("the start"):
                return failure
        group.send((check.__module__, check.__name__, arguments))
        try:
            failure = group.failure(check.__name__, patience)
        except BaseException:  # the test is interrupted
            group.kill()
            raise
        if not failure:
            self.groups[count] = group
        return failure

    def close(self) -> str:
        """Lets all groups leave in order. How that failed, or nothing."""
        failures = []
        while self.groups:
            _, group = self.groups.popitem()
            group.send(None)
            failures.append(group.failure("leaving"))
            for rank in group.ranks:
                rank.process.join(ENOUGH)
            group.kill()
        return "\n".join(filter(None, failures))
