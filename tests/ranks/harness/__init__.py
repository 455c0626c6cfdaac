"""Runs checks on the ranks of real process groups and brings every outcome home."""

from tests.ranks.harness.groups import Groups
from tests.ranks.harness.on import on
from tests.ranks.harness.watch import Limits

# Here the limits below end what is stuck; the clock of the whole test is there in case they fail.
CLOCK = 3600

__all__ = ["CLOCK", "Groups", "Limits", "on"]
