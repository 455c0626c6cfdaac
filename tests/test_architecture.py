"""What the linters do not see of the order of the package; ``lint-imports`` has the storeys."""

import subprocess
import sys

import pytest

import negdiag_param


def test_the_facade_is_complete():
    public = [name for name in vars(negdiag_param) if not name.startswith("_")]
    assert sorted(public) == sorted(negdiag_param.__all__)


@pytest.mark.slow
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
