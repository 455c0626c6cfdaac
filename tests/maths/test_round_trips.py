"""Assigning a weight and reading it gives that weight."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from negdiag_param import NegExpDiagonal, NegSoftplusDiagonal
from tests.support.asserts import assert_negative, assert_same_bits, bits
from tests.support.tables import (
    MAKERS,
    MARGINS,
    VARIANTS,
    every_dtype,
    every_maker,
    every_margin,
    originals,
)

EXACT = ("clamp", "sign_flip")  # whose original is the weight itself
# The powers of ten up to which a value comes back, and to how many eps.
ACCURATE = {
    torch.float16: (3, 40),
    torch.bfloat16: (30, 40),
    torch.float32: (30, 100),
    torch.float64: (100, 300),
}


def round_away(value: float, dtype: torch.dtype) -> Tensor:
    """The smallest number of ``dtype`` that is at least the positive ``value``."""
    rounded = torch.tensor(value, dtype=torch.float64).to(dtype)
    if rounded.item() < value:
        # Positive floats are ordered as their bits are.
        rounded = (bits(rounded) + 1).view(dtype)
    return rounded


BETAS = {f"beta={beta}": partial(NegSoftplusDiagonal, beta=beta) for beta in (0.08, 0.7, 11.0)}


@every_dtype
@pytest.mark.parametrize(
    ("name", "margin"), [*product(MAKERS, MARGINS), *product(BETAS, (0.0, 0.02, 22.0))]
)
def test_feasible_values_can_be_assigned_and_the_weight_itself_stays_what_it_is(
    name, margin, dtype
):
    parametrization = (MAKERS | BETAS)[name](margin, dims=(), infeasible="error")
    span, eps = ACCURATE[dtype]
    powers = -torch.logspace(-span, span, 101, dtype=torch.float64).to(dtype)
    values = torch.cat([originals(dtype), powers])
    feasible = values[(values < 0) & (values.double() <= -margin)]
    original = parametrization.right_inverse(feasible)
    assert original.isfinite().all()
    again, kept = parametrization(original), [parametrization(values)]
    if name in VARIANTS and margin:
        kept.append(-round_away(margin, dtype).expand(4))  # the boundary
    elif name in VARIANTS:
        usual = feasible.double().neg().log10().abs() <= span
        rtol = 0 if name in EXACT else eps * torch.finfo(dtype).eps
        torch.testing.assert_close(again[usual], feasible[usual], rtol=rtol, atol=0)
    for value in (again, *kept):
        assert_same_bits(parametrization(parametrization.right_inverse(value)), value)


@every_dtype
@every_margin
@every_maker
def test_infeasible_entries_are_reflected_or_start_a_little_inside(name, margin, dtype):
    parametrization = MAKERS[name](margin, infeasible="reflect")
    weight = torch.diag(torch.tensor([5.0, 0.0, margin, margin / 2, -margin / 2], dtype=dtype))
    original = parametrization.right_inverse(weight).requires_grad_()
    found = parametrization(original)
    assert_negative(found.diagonal(), margin)
    torch.testing.assert_close(found[0, 0], -weight[0, 0], rtol=0.05, atol=0)
    found.sum().backward()
    assert (original.grad.diagonal() != 0).all(), "an entry that cannot train"
    away = max(1e-3, 8 * torch.finfo(dtype).eps * margin)
    assert (found.diagonal()[1:].double() + margin >= -2 * away - 0.05 * margin).all()


@every_maker
def test_the_inverse_never_aliases_and_keeps_the_memory_format(name):
    parametrization = MAKERS[name](infeasible="reflect")
    weight = -torch.rand(3, 3).add(0.1)
    assert parametrization.right_inverse(weight).data_ptr() != weight.data_ptr()
    assert parametrization.right_inverse(weight.T).is_contiguous()
    kernels = -torch.rand(4, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    found = parametrization.right_inverse(kernels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert parametrization(found).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 3, 0), (3, 3, 2, 0)], ids=str)
def test_the_center_of_a_kernel_needs_a_kernel(shape):
    parametrization = NegExpDiagonal(taps="center")
    for use in (parametrization, parametrization.right_inverse):
        with pytest.raises(ValueError, match=r"expected kernel dimensions after dims=\(0, 1\)"):
            use(-torch.ones(shape))
