"""Values and slopes by inductor equal eager ones over the whole range, to a few ulps."""

import shutil

import pytest
import torch
from torch import Tensor

from tests.support.asserts import assert_negative
from tests.support.tables import BUILT_IN, extremes, smallest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]
EPS = 4


def originals(dtype: torch.dtype) -> Tensor:
    x = torch.linspace(-100, 90, 4000, dtype=torch.float64)
    near = torch.tensor([-20.0, -17.0, -1e-3, 0.0, 1e-3, 15.0, 40.0, 88.0, 89.5])
    return torch.cat([x.to(dtype), near.to(dtype), extremes(dtype)])


def assert_close_in_ulps(found: Tensor, expected: Tensor) -> None:
    error = (found.double() - expected.double()).abs()
    # Near the smallest subnormal a few ulps are a few of those.
    allowed = EPS * (torch.finfo(found.dtype).eps * expected.double().abs() + smallest(found.dtype))
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), (originals(found.dtype)[worst], found[worst], expected[worst])


CASES = [
    (name, margin, dtype)
    for name in BUILT_IN
    for margin in (0.0, 0.7)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.fixture(scope="module")
def results():
    """Eager and compiled, in every case; one compilation for all is the quickest."""
    torch._dynamo.reset()
    parametrizations = [BUILT_IN[name](margin, dims=()) for name, margin, _ in CASES]

    def every(*originals: Tensor) -> list[Tensor]:
        return [p(x) for p, x in zip(parametrizations, originals, strict=True)]

    found = []
    for function in (every, torch.compile(every, fullgraph=True)):
        leaves = [originals(dtype).requires_grad_() for _, _, dtype in CASES]
        outputs = function(*leaves)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        found.append([
            (leaf.grad, output.detach()) for leaf, output in zip(leaves, outputs, strict=True)
        ])
    return dict(zip(CASES, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize(("name", "margin", "dtype"), CASES, ids=str)
def test_compiled_values_and_slopes_equal_eager_ones(results, name, margin, dtype):
    (eager, value), (compiled, compiled_value) = results[name, margin, dtype]
    assert (compiled[eager.abs() > EPS * smallest(dtype)] != 0).all()
    assert_close_in_ulps(compiled, eager)
    assert_close_in_ulps(compiled_value, value)
    assert_negative(compiled_value, margin)
