"""Files for the command line."""

import pytest

HEADER = "year,prey,predator\n"


@pytest.fixture
def written(tmp_path):
    """Writes a CSV of the given rows, text or bytes, and returns its path."""

    def write(content):
        path = tmp_path / "data.csv"
        if isinstance(content, list):
            content = HEADER + "\n".join(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write
