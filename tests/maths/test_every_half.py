"""All 65,536 patterns of float16 and of bfloat16."""

from functools import partial

import pytest
import torch
from torch import Tensor

from negdiag_param import NegSoftplusDiagonal
from tests.support.asserts import assert_negative, assert_same_bits
from tests.support.modules import OwnSquareDiagonal
from tests.support.tables import VARIANTS

HALVES = [torch.float16, torch.bfloat16]
MARGINS = (0.0, 0.1, 2.7)
every_wider = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])


def patterns(dtype: torch.dtype) -> Tensor:
    """Every finite one."""
    found = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return found[found.isfinite()]


# A user's map has no slope to be asked for, but the same promise.
CASES_OF = VARIANTS | {"subclass": OwnSquareDiagonal}
CASES = [(name, margin) for name in CASES_OF for margin in MARGINS]


@every_half
@pytest.mark.parametrize(("name", "margin"), [case for case in CASES if case[0] in VARIANTS])
def test_every_original_gives_a_strict_value_and_finite_gradients(name, margin, dtype):
    parametrization = VARIANTS[name](margin, dims=())
    original = patterns(dtype).requires_grad_()
    value = parametrization(original)
    assert_negative(value, margin)

    def gradient(upstream: float) -> Tensor:
        (found,) = torch.autograd.grad(
            value, original, torch.full_like(value, upstream), retain_graph=True
        )
        return found

    info = torch.finfo(dtype)
    for size in (1.0, info.tiny, info.tiny * info.eps):
        assert gradient(size).isfinite().all()
        assert_same_bits(gradient(-size), -gradient(size))
    # The largest may overflow where the map is steep, which loss scalers wait for; no NaN.
    largest, slope = gradient(info.max), gradient(1.0)
    assert largest[slope.abs() < 1].isfinite().all()
    assert not (largest.isnan() | (largest * slope < 0)).any()


@every_half
@pytest.mark.parametrize(
    "make",
    [
        *[partial(kind, 0.1) for kind in VARIANTS.values()],
        partial(NegSoftplusDiagonal, beta=1e-5),
    ],
    ids=str,
)
def test_transforms_give_what_eager_mode_does(make, dtype):
    parametrization, original = make(dims=()), patterns(dtype)
    expected = parametrization(original)
    assert_same_bits(parametrization.entries(original), expected)
    assert_same_bits(torch.vmap(parametrization)(original.view(-1, 1)).flatten(), expected)


@every_half
@pytest.mark.parametrize(("name", "margin"), CASES)
def test_a_weight_that_is_assigned_to_itself_stays_what_it_is(name, margin, dtype):
    parametrization = CASES_OF[name](margin, dims=(), infeasible="error")
    value = parametrization(patterns(dtype))
    assert_same_bits(parametrization(parametrization.right_inverse(value)), value)


@every_half
@pytest.mark.parametrize(("name", "margin"), CASES)
def test_every_feasible_value_can_be_assigned(name, margin, dtype):
    parametrization = CASES_OF[name](margin, dims=(), infeasible="error")
    values = patterns(dtype)
    values = values[(values < 0) & (values.double() <= -margin)]
    original = parametrization.right_inverse(values)
    assert original.isfinite().all()
    again = parametrization(original)
    assert_same_bits(parametrization(parametrization.right_inverse(again)), again)


def samples(dtype: torch.dtype) -> Tensor:
    """Of every size."""
    torch.manual_seed(0)
    normal = torch.randn(5_000, dtype=dtype)
    tiny = normal.sign() * torch.empty_like(normal).uniform_(-60, 6).exp()
    return torch.cat([4 * normal, 1e-3 * normal, tiny, torch.empty_like(normal).uniform_(-90, 90)])


@every_wider
@pytest.mark.parametrize(("name", "margin"), CASES)
def test_so_it_does_in_wider_dtypes(name, margin, dtype):
    parametrization = CASES_OF[name](margin, dims=())
    value = parametrization(samples(dtype))
    assert_same_bits(parametrization(parametrization.right_inverse(value)), value)


@every_wider
@pytest.mark.parametrize("margin", [0.0, 0.02, 22.0])
@pytest.mark.parametrize("beta", [0.08, 0.7, 11.0])
def test_so_it_does_where_beta_rounds_once_more(beta, margin, dtype):
    parametrization = NegSoftplusDiagonal(margin, dims=(), beta=beta)
    value = parametrization(samples(dtype))
    assert_same_bits(parametrization(parametrization.right_inverse(value)), value)
