from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.ranks import forks

if TYPE_CHECKING:
    from tests.ranks.harness import Groups


def pytest_configure(config: pytest.Config) -> None:
    """While this process still imports, unless others run the tests or the slow ones are left."""
    if config.getoption("dist", "no") == "no" and not config.option.markexpr:
        forks.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs no ranks runs while they get ready."""
    items.sort(key=lambda item: "groups" in item.fixturenames)


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Groups]":
    """Process groups, which all tests share."""
    from tests.ranks.harness import Groups

    groups = Groups(tmp_path_factory.mktemp("ranks"))
    yield groups
    if failure := groups.close():
        pytest.fail(failure, pytrace=False)
