"""Runs checks on the ranks of real process groups and brings every outcome home."""

from tests.ranks.harness.groups import Groups
from tests.ranks.harness.on import on

__all__ = ["Groups", "on"]
