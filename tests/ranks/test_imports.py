"""Distributed tensors are for those who have them."""

import subprocess
import sys

import pytest

from tests.ranks.harness import CLOCK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


def test_distributed_tensors_are_not_imported_for_those_who_have_none() -> None:
    """Nor needed: they are missing where PyTorch was built without torch.distributed."""
    code = """
import sys
from torch import nn
from negdiag_param import init_, negative_diagonals, plain_state_dict
from negdiag_param import register_negative_diagonal, remove_negative_diagonal
name = "torch.distributed.tensor"
for _ in range(2):
    layer = register_negative_diagonal(nn.Linear(3, 3), cache_in_eval=True)
    layer.weight.sum().backward()
    layer.weight = -layer.weight.detach()
    init_(layer, "weight", nn.init.zeros_)
    layer.load_state_dict(plain_state_dict(layer))
    assert dict(negative_diagonals(layer.eval()))["weight"].max() < 0
    remove_negative_diagonal(layer)
    assert sys.modules.get(name) is None
    sys.modules[name] = None  # the second time it cannot be imported
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
