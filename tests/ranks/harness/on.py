"""Makes tests of functions that run on ranks."""

import functools
from collections.abc import Callable
from inspect import Parameter, signature

import pytest

from tests.ranks.harness.groups import Check, Groups


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
