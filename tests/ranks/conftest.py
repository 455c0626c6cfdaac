from collections.abc import Iterator

import pytest

from tests.ranks.harness import Groups


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    """Process groups, which all tests share."""
    groups = Groups(tmp_path_factory.mktemp("ranks"))
    yield groups
    if failure := groups.close():
        pytest.fail(failure, pytrace=False)
