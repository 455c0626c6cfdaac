from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.ranks import forks

if TYPE_CHECKING:
    from tests.ranks.harness import Groups


def pytest_configure(config: pytest.Config) -> None:
    """While this process still imports, unless others run the tests or the slow ones are left."""
    if config.getoption("dist", "no") == "no" and not config.option.markexpr:
        for source in (forks.RANKS, forks.BARE):
            source.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs none of these ranks runs while they get ready."""
    items.sort(key=lambda item: "groups" in item.fixturenames)


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Groups]":
    """Process groups, which all tests share."""
    from tests.ranks.harness import Groups

    with Groups.at(tmp_path_factory.mktemp("ranks"), forks.RANKS) as groups:
        yield groups
