"""Where the processor reads subnormal numbers as zero, a diagonal is negative all the same."""

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative
from tests.support.modes import flushing
from tests.support.tables import CLASSES, every_dtype, every_map, every_margin, extremes, smallest


def assert_negative_here_and_there(diagonal: Tensor, margin: float) -> None:
    with flushing(True):
        assert (diagonal < 0).all()
        assert (diagonal.double() <= -margin).all()
    assert_negative(diagonal, margin)


def near_zero(dtype: torch.dtype) -> Tensor:
    tiny = torch.finfo(dtype).tiny
    sizes = [0.0, -0.0, smallest(dtype), tiny / 2, tiny, 1e-45, 1.0]
    return -torch.tensor(sizes, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("made_flushing", [False, True])
@every_dtype
@every_margin
@pytest.mark.parametrize("name", CLASSES)
def test_every_original_gives_a_negative_diagonal(name, margin, dtype, made_flushing):
    original = torch.cat([extremes(dtype), near_zero(dtype)])
    with flushing(made_flushing):
        parametrization = CLASSES[name](margin, dims=())
    with flushing(True):
        weight = parametrization(original)
        trained = parametrization(original.requires_grad_())
    assert_negative_here_and_there(weight, margin)
    assert_negative_here_and_there(trained, margin)


@every_dtype
@every_margin
@every_map
def test_registering_gives_finite_originals(map, margin, dtype):
    module = nn.Module()
    module.weight = nn.Parameter(near_zero(dtype))
    with flushing(True):
        register_negative_diagonal(module, map=map, margin=margin)
        weight = module.weight
    assert module.parametrizations.weight.original.isfinite().all()
    assert_negative_here_and_there(weight, margin)


@every_dtype
@every_margin
@every_map
def test_assigning_gives_finite_originals(map, margin, dtype):
    module = nn.Module()
    module.weight = nn.Parameter(-torch.ones_like(near_zero(dtype)))
    register_negative_diagonal(module, map=map, margin=margin, infeasible="reflect")
    value = near_zero(dtype)
    with flushing(True):
        module.weight = value
        weight = module.weight
    assert module.parametrizations.weight.original.isfinite().all()
    assert_negative_here_and_there(weight, margin)
