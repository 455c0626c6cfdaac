"""All 65,536 patterns of float16 and of bfloat16."""

import pytest
import torch
from torch import Tensor

from tests.support.asserts import assert_negative, assert_same_bits
from tests.support.tables import CONSTANTS, RESTING, VARIANTS

HALVES = [torch.float16, torch.bfloat16]
MARGINS = (0.0, 0.1, 2.7)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])


def patterns(dtype: torch.dtype) -> Tensor:
    """Every finite one."""
    found = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return found[found.isfinite()]


def margins(name: str) -> list[float]:
    return [margin for margin in MARGINS if name not in RESTING or margin < 2.5]


CASES = [(name, margin) for name in VARIANTS for margin in margins(name)]


@every_half
@pytest.mark.parametrize(("name", "margin"), CASES)
def test_every_original_gives_a_strict_value_and_finite_gradients(name, margin, dtype):
    parametrization = VARIANTS[name](margin, dims=())
    original = patterns(dtype).requires_grad_()
    value = parametrization(original)
    assert_negative(value, margin)
    for upstream in (1.0, -1.0, torch.finfo(dtype).tiny):
        (gradient,) = torch.autograd.grad(
            value, original, torch.full_like(value, upstream), retain_graph=True
        )
        assert gradient.isfinite().all()


@every_half
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_weight_that_is_assigned_to_itself_stays_what_it_is(name, margin, dtype):
    parametrization = CONSTANTS[name](margin, dims=(), infeasible="error")
    value = parametrization(patterns(dtype))
    assert_same_bits(parametrization(parametrization.right_inverse(value)), value)


@every_half
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", CONSTANTS)
def test_every_feasible_value_can_be_assigned(name, margin, dtype):
    parametrization = CONSTANTS[name](margin, dims=(), infeasible="error")
    values = patterns(dtype)
    values = values[(values < 0) & (values.double() <= -margin)]
    original = parametrization.right_inverse(values)
    assert original.isfinite().all()
    again = parametrization(original)
    assert_same_bits(parametrization(parametrization.right_inverse(again)), again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["smooth_abs", "exp", "softplus", "square", "sign_flip"])
def test_so_it_does_in_wider_dtypes(name, dtype):
    torch.manual_seed(0)
    sizes = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=dtype).repeat(20_000)
    parametrization = CONSTANTS[name](0.0, dims=())
    value = parametrization(sizes * torch.randn(len(sizes), dtype=dtype))
    found = parametrization(parametrization.right_inverse(value))
    assert (found != value).sum() <= 1e-5 * len(value)
    torch.testing.assert_close(found, value, rtol=2 * torch.finfo(dtype).eps, atol=0)
