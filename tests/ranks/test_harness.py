"""What is stuck comes to an end and says where; what fails leaves the others whole."""

import os
import re
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.ranks.forks import BARE
from tests.ranks.harness import CLOCK, Groups, Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

IMPATIENT = Limits(patience=0.5, grace=0.2)


def waits_for_who_sleeps() -> None:
    if dist.get_rank() == 0:
        dist.barrier()
    while True:
        time.sleep(0.1)


def waits_for_who_returned() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


def waits_for_who_failed() -> None:
    if dist.get_rank() == 0:
        dist.barrier()
    raise RuntimeError("no more of this")


def dies() -> None:
    if dist.get_rank() == 0:
        dist.barrier()
    os._exit(3)


def spins() -> None:
    if dist.get_rank() == 0:
        dist.barrier()
    while True:
        pass


def works(seconds: float) -> None:
    """One rank works and says nothing; the other waits for it."""
    if dist.get_rank() == 1:
        end = time.process_time() + seconds
        while time.process_time() < end:
            torch.randn(100, 100).sum()
    dist.barrier()


IN_BARRIER = r"rank 0 was still in it after \d.\d\d s of processor time, at\n.* in barrier\n"


STUCK = [
    (
        waits_for_who_sleeps,
        IMPATIENT,
        rf"for 0.5 s no rank got on or used the processor\n{IN_BARRIER}"
        r".* in waits_for_who_sleeps\n"
        r"rank 1 was still in it after .* in waits_for_who_sleeps",
    ),
    (
        waits_for_who_returned,
        IMPATIENT,
        rf"for 0.5 s no .*{IN_BARRIER}.* in waits_for_who_returned\nrank 1: came to its end",
    ),
    (
        waits_for_who_failed,
        IMPATIENT,
        rf"it failed on rank 1\n{IN_BARRIER}.* in waits_for_who_failed\n"
        r"rank 1: Traceback .*RuntimeError: no more of this",
    ),
    (dies, IMPATIENT, r"it failed on rank \d\nrank 0.*\nrank 1: died with exit code 3"),
    (
        spins,
        Limits(processor=0.5),
        rf"a rank used the processor for 0.5 s\n{IN_BARRIER}.*"
        r"rank 1 was still in it after \d+.\d\d s .* in spins",
    ),
]


@pytest.fixture(scope="module")
def bare_groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    with Groups.at(tmp_path_factory.mktemp("ranks"), BARE) as groups:
        yield groups


@pytest.mark.parametrize(
    ("check", "limits", "expected"), STUCK, ids=[check.__name__ for check, *_ in STUCK]
)
def test_what_is_stuck_ends_and_says_where(
    bare_groups: Groups, check: object, limits: Limits, expected: str
) -> None:
    begun = time.monotonic()
    failure = bare_groups.failure(check, 2, limits)
    assert re.match(rf"{check.__name__} on 2 ranks: {expected}", failure, re.DOTALL), failure
    assert time.monotonic() - begun < CLOCK / 4
    assert not bare_groups.failure(works, 2, seconds=0.0)


def test_work_is_not_taken_for_waiting(bare_groups: Groups) -> None:
    assert not bare_groups.failure(works, 2, Limits(patience=1), seconds=1.5)
