"""What is stuck comes to an end and says where; what fails leaves the others whole."""

import os
import re
import time
from collections.abc import Callable

import pytest
import torch.distributed as dist

from tests.ranks.harness import Groups


def meet_or(otherwise: Callable[[], object]) -> None:
    """The first rank waits for the others, which do not come."""
    dist.barrier() if dist.get_rank() == 0 else otherwise()


def sleeps() -> None:
    meet_or(lambda: time.sleep(3600))


def returns() -> None:
    meet_or(lambda: None)


def fails() -> None:
    meet_or(lambda: int("no number"))


def dies() -> None:
    meet_or(lambda: os._exit(3))


def meets() -> None:
    meet_or(dist.barrier)


IN_BARRIER = r"rank 0 was still in it, at\n.* in barrier\n.* in meet_or\n.*"
TOO_LONG = rf"it took longer than 3 s\n{IN_BARRIER}"
STUCK = {
    sleeps: (3.0, rf"{TOO_LONG} in sleeps\nrank 1 was still in it, at\n.* in sleeps"),
    returns: (3.0, rf"{TOO_LONG} in returns\nrank 1: came to its end"),
    fails: (600.0, rf"it failed on rank 1\n{IN_BARRIER} in fails\nrank 1: .*ValueError: invalid"),
    dies: (600.0, r"it failed on rank \d\nrank 0.*\nrank 1: died with exit code 3"),
}


@pytest.mark.parametrize("check", STUCK, ids=lambda check: check.__name__)
def test_what_is_stuck_ends_and_says_where(groups: Groups, check: Callable) -> None:
    patience, expected = STUCK[check]
    failure = groups.failure(check, 2, patience)
    assert re.match(rf"{check.__name__} on 2 ranks: {expected}", failure, re.DOTALL), failure
    assert not groups.failure(meets, 2)
