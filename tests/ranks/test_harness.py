"""What is stuck comes to an end and says where; what fails leaves the others whole."""

import os
import re
import time
from functools import partial

import pytest
import torch.distributed as dist

from tests.ranks.harness import Groups

# What the second rank does, for how long that is waited for, and what is said then.
IN_BARRIER = r"rank 0 was still in it, at\n.* in barrier\n.* in meets"
TOO_LONG = rf"it took longer than 3 s\n{IN_BARRIER}"
STUCK = {
    "sleeps": (3.0, rf"{TOO_LONG}\nrank 1 was still in it, at\n.* in sleeps"),
    "returns": (3.0, rf"{TOO_LONG}\nrank 1: came to its end"),
    "fails": (600.0, rf"it failed on rank 1\n{IN_BARRIER}\nrank 1: .*ValueError: invalid"),
    "dies": (600.0, r"it failed on rank \d\nrank 0.*\nrank 1: died with exit code 3"),
}


def sleeps() -> None:
    time.sleep(3600)


def meets(other: str) -> None:
    """The first rank waits for the second, which may do otherwise."""
    fails, dies = partial(int, "no number"), partial(os._exit, 3)
    others = {"sleeps": sleeps, "returns": int, "fails": fails, "dies": dies}
    others.get(other if dist.get_rank() else "", dist.barrier)()


@pytest.mark.parametrize("other", STUCK)
def test_what_is_stuck_ends_and_says_where(groups: Groups, other: str) -> None:
    patience, expected = STUCK[other]
    failure = groups.failure(meets, 2, patience, other=other)
    assert re.match(rf"meets on 2 ranks: {expected}", failure, re.DOTALL), failure
    assert not groups.failure(meets, 2, other="meets")
