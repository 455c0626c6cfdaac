"""The value of an entry does not depend on its place: neither a vector body nor its tail shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from negdiag_param import NegativeDiagonal
from tests.support.asserts import bits
from tests.support.tables import DTYPES, VARIANTS, every_dtype

MARGINS_HERE = (0.0, 0.7)
LENGTHS = (1, 3, 7, 8, 17, 33)
OFFSETS = 41
LEVELS = ("unset", "default", "avx2")
ROOT = Path(__file__).parents[2]


def applied(parametrization: NegativeDiagonal, x: Tensor) -> dict[str, Tensor]:
    leaf = x.detach().requires_grad_()
    weight = parametrization(leaf)
    weight.backward(torch.ones_like(weight))
    with torch.no_grad():
        plain = parametrization(x)
    inverse = parametrization.right_inverse(weight.detach())
    return {"forward": weight, "gradient": leaf.grad, "no_grad": plain, "inverse": inverse}


def dependent(name: str, margin: float, dtype: torch.dtype) -> set[tuple[str, int]]:
    """What differs in a slice from the same slice of the whole, and in slices of which length."""
    parametrization = VARIANTS[name](margin, dims=(), infeasible="error")
    generator = torch.Generator().manual_seed(0)
    x = (6 * torch.randn(300, generator=generator, dtype=torch.float64)).to(dtype)
    whole = applied(parametrization, x)
    found = set()
    for length in LENGTHS:
        parts = [applied(parametrization, x[i : i + length]) for i in range(OFFSETS)]
        for what, values in whole.items():
            expected = values.unfold(0, length, 1)[:OFFSETS]
            if not torch.equal(bits(torch.stack([part[what] for part in parts])), bits(expected)):
                found.add((what, length))
    return found


@every_dtype
@pytest.mark.parametrize("margin", MARGINS_HERE)
@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_has_the_same_value_at_every_place(name, margin, dtype):
    assert not dependent(name, margin, dtype)


def here(level: str) -> bool:
    return level != "avx2" or torch.backends.cpu.get_cpu_capability().startswith("AVX")


@pytest.fixture(scope="module")
def runs():
    """A process for each level of vectorization, all at once."""
    plain = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    processes = {
        level: subprocess.Popen(
            [sys.executable, "-m", "tests.maths.test_places"],
            cwd=ROOT,
            env=plain if level == "unset" else {**plain, "ATEN_CPU_CAPABILITY": level},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for level in LEVELS
        if here(level)
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_so_at_every_level_of_vectorization(runs, level):
    if not here(level):
        pytest.skip("needs AVX2")
    output, error = runs[level].communicate()
    assert runs[level].returncode == 0, error
    capability, *failures = output.splitlines()
    old = {"no avx": "default"}  # as PyTorch said before 2.8 or so
    assert level in ("unset", old.get(capability.lower(), capability.lower()))
    assert not failures


def main() -> None:
    torch.set_num_threads(1)
    print(torch.backends.cpu.get_cpu_capability())
    for name in VARIANTS:
        for margin in MARGINS_HERE:
            for dtype in DTYPES:
                found = dependent(name, margin, dtype)
                if found:
                    print(name, margin, dtype, sorted(found))


if __name__ == "__main__":
    main()
