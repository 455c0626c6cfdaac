"""The value of an entry does not depend on its place: neither a vector body nor its tail shows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from negdiag_param import NegativeDiagonal
from tests.support.asserts import bits
from tests.support.tables import DTYPES, VARIANTS, every_dtype

MARGINS_HERE = (0.0, 0.7)
# In tiles of seven no entry is in the body of any vector; a single entry may have code of its own.
TILES = (7, 1)
LEVELS = ("default", "avx2")
ROOT = Path(__file__).parents[2]


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


def dependent(name: str, margin: float, dtype: torch.dtype) -> set[tuple[str, int]]:
    """What differs in tiles from the whole, and in tiles of which length."""
    parametrization = VARIANTS[name](margin, dims=(), infeasible="error")
    generator = torch.Generator().manual_seed(0)
    x = (6 * torch.randn(300, generator=generator, dtype=torch.float64)).to(dtype)
    found = set()
    for what, (operation, entries) in OPERATIONS.items():
        whole = operation(parametrization, x[:entries])
        for length in TILES:
            tiles = x[: entries * length // TILES[0]].split(length)
            again = torch.cat([operation(parametrization, tile) for tile in tiles])
            if not torch.equal(bits(again), bits(whole[: len(again)])):
                found.add((what, length))
    return found


@every_dtype
@pytest.mark.parametrize("margin", MARGINS_HERE)
@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_has_the_same_value_at_every_place(name, margin, dtype):
    assert not dependent(name, margin, dtype)


def level_here() -> str:
    """In the words of ``ATEN_CPU_CAPABILITY``."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    return "default" if found == "no avx" else found  # as PyTorch said before 2.8 or so


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_an_entry_has_the_same_value_at_every_place_at_the_level(level):
    if level == level_here():
        pytest.skip("this process runs at that level")
    if level == "avx2" and not level_here().startswith("avx"):
        pytest.skip("needs AVX2")
    process = subprocess.run(
        [sys.executable, "-m", "tests.maths.test_places"],
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": level},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.splitlines() == [level]


def main() -> None:
    torch.set_num_threads(1)
    print(level_here())
    for name in VARIANTS:
        for dtype in DTYPES:
            found = dependent(name, MARGINS_HERE[-1], dtype)
            if found:
                print(name, dtype, sorted(found))


if __name__ == "__main__":
    main()
