from collections.abc import Iterator

import pytest

from tests.ranks import forks


def pytest_configure(config: pytest.Config) -> None:
    """While this process still imports, unless there are several or the slow tests are left out."""
    is_alone = config.getoption("dist", "no") == "no" and not hasattr(config, "workerinput")
    if is_alone and not config.option.markexpr:
        forks.start()


def pytest_itemcollected(item: pytest.Item) -> None:
    """One worker runs all of these, which share the ranks."""
    # The harness ends what is stuck; the clock of the whole test is there in case that fails.
    for mark in (pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("ranks")):
        item.add_marker(mark)


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Process groups, which all tests share."""
    from tests.ranks.harness import Groups

    groups = Groups(tmp_path_factory.mktemp("ranks"))
    yield groups
    groups.close()
