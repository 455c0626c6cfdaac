"""Values and slopes by inductor equal eager ones over the whole range, to a few ulps."""

import pytest
import torch
from torch import Tensor

from tests.support.asserts import assert_negative
from tests.support.tables import VARIANTS, extremes, smallest
from tests.support.versions import NEEDS_COMPILER

pytestmark = [pytest.mark.slow, NEEDS_COMPILER, pytest.mark.filterwarnings("ignore")]
EPS = 4
CASES = [
    (name, margin, dtype)
    for name in VARIANTS
    for margin in (0.0, 0.7)
    for dtype in (torch.float32, torch.bfloat16)
]
UPSTREAMS = (1.0, -1.0, 1e30, torch.finfo(torch.float32).max / 1024, 2.0**-126)


def originals(dtype: torch.dtype) -> Tensor:
    x = torch.linspace(-100, 90, 4000, dtype=torch.float64)
    near = torch.tensor([-20.0, -17.0, -1e-3, 0.0, 1e-3, 15.0, 40.0, 88.0, 89.5])
    return torch.cat([x.to(dtype), near.to(dtype), extremes(dtype)])


def assert_close_in_ulps(found: Tensor, expected: Tensor) -> None:
    error = (found.double() - expected.double()).abs()
    # Near the smallest subnormal a few ulps are a few of those, times a beta of 10.
    tiny = 10 * smallest(found.dtype)
    allowed = EPS * (torch.finfo(found.dtype).eps * expected.double().abs() + tiny)
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), (originals(found.dtype)[worst], found[worst], expected[worst])


@pytest.fixture(scope="module")
def results():
    """Eager and compiled, the values and the gradients of every case: one compilation for all."""
    torch._dynamo.reset()
    parametrizations = [VARIANTS[name](margin, dims=()) for name, margin, _ in CASES]

    def every(*originals: Tensor) -> list[Tensor]:
        return [p(x) for p, x in zip(parametrizations, originals, strict=True)]

    leaves = [originals(dtype).requires_grad_() for _, _, dtype in CASES]
    found = []
    for function in (every, torch.compile(every, fullgraph=True)):
        gradients = []
        for size in UPSTREAMS:
            outputs = function(*leaves)
            upstream = [torch.full_like(output, size) for output in outputs]
            gradients.append(torch.autograd.grad(outputs, leaves, upstream))
        values = [output.detach() for output in outputs]
        found.append(list(zip(values, zip(*gradients, strict=True), strict=True)))
    return dict(zip(CASES, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize(("name", "margin", "dtype"), CASES, ids=str)
def test_compiled_values_and_slopes_equal_eager_ones(results, name, margin, dtype):
    (value, gradients), (compiled_value, compiled) = results[name, margin, dtype]
    assert_close_in_ulps(compiled_value, value)
    assert_negative(compiled_value, margin)
    slope, compiled_slope = gradients[0], compiled[0]
    assert_close_in_ulps(compiled_slope, slope)
    assert (compiled_slope[slope.abs() > EPS * smallest(dtype)] != 0).all()
    info = torch.finfo(dtype)
    for size, expected, found in zip(UPSTREAMS, gradients, compiled, strict=True):
        # The slope of exp has the roundings of an original of 88, that of a corner those of 1.
        rtol, atol = 1024 * torch.finfo(torch.float32).eps, 4 * info.eps * abs(size) + info.tiny
        torch.testing.assert_close(found, expected, rtol=max(rtol, 4 * info.eps), atol=atol)
