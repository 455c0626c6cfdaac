"""The comparisons that are published, made once."""

import pytest

from negdiag_param._demo.data import ALPHA_PINENE, HUDSON_BAY
from negdiag_param._demo.fit import Comparison


@pytest.fixture(scope="session")
def results():
    kinds = ("forward", "midpoint")
    return [Comparison(data, kind) for data in (ALPHA_PINENE, HUDSON_BAY) for kind in kinds]
