"""The value of an entry does not depend on its place: neither a vector body nor its tail shows."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from negdiag_param import NegativeDiagonal
from tests.support.asserts import bits
from tests.support.tables import VARIANTS, every_dtype

# In tiles of seven no entry is in the body of any vector; a single entry may have code of its own.
TILES = (7, 1)
LEVELS = ("default", "avx2")


def gradient(parametrization: NegativeDiagonal, x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(parametrization(leaf).sum(), leaf)[0]


# Each with the number of entries that it is tried on: inverses are dear.
OPERATIONS: dict[str, tuple[Callable[[NegativeDiagonal, Tensor], Tensor], int]] = {
    "forward": (lambda p, x: p(x.detach().requires_grad_()).detach(), 300),
    "gradient": (gradient, 300),
    "no_grad": (lambda p, x: p(x), 300),
    "inverse": (lambda p, x: p.right_inverse(p(x)), 70),
}


@every_dtype
@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_has_the_same_value_at_every_place(name, margin, dtype):
    parametrization = VARIANTS[name](margin, dims=(), infeasible="error")
    generator = torch.Generator().manual_seed(0)
    x = (6 * torch.randn(300, generator=generator, dtype=torch.float64)).to(dtype)
    for what, (operation, entries) in OPERATIONS.items():
        whole = operation(parametrization, x[:entries])
        for length in TILES:
            tiles = x[: entries * length // TILES[0]].split(length)
            again = torch.cat([operation(parametrization, tile) for tile in tiles])
            assert torch.equal(bits(again), bits(whole[: len(again)])), (what, length)


def level_here() -> str:
    """In the words of ``ATEN_CPU_CAPABILITY``."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    return "default" if found == "no avx" else found  # as PyTorch said before 2.8 or so


def test_this_process_runs_at_the_level_that_is_asked_for():
    assert os.environ.get("ATEN_CPU_CAPABILITY", level_here()) == level_here()


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_an_entry_has_the_same_value_at_every_place_at_the_level(level):
    if level == level_here():
        pytest.skip("this process runs at that level")
    if level == "avx2" and not level_here().startswith("avx"):
        pytest.skip("needs AVX2")
    env = {**os.environ, "ATEN_CPU_CAPABILITY": level}
    command = [sys.executable, "-m", "pytest", "-qk", "0.7 or process", __file__]
    process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
