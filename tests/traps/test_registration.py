"""Traps of registering: values that jump, are lost, or were never fit for it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import NegativeDiagonal, register_negative_diagonal
from tests.support.modules import Half
from tests.traps.naive import Naive, NaiveFlip, feasible, naive, negative


def test_registration_makes_half_of_the_diagonal_nan():
    """Trap: registering runs ``right_inverse`` on a weight that is not feasible yet."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    ours = register_negative_diagonal(copy.deepcopy(layer))
    assert naive(layer).weight.diagonal().isnan().sum() > 4
    assert negative(ours)


def test_a_missing_inverse_goes_unnoticed():
    """Trap: a ``right_inverse`` that raises NotImplementedError is skipped, and values jump."""

    class NoInverse(Naive):
        def right_inverse(self, weight: Tensor) -> Tensor:
            raise NotImplementedError

    class OursWithoutInverse(NegativeDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -x.exp()

    before = feasible().weight
    assert not naive(feasible(), NoInverse).weight.allclose(before)
    layer = feasible()
    with pytest.raises(NotImplementedError, match="inverse"):
        register_negative_diagonal(layer, map=OursWithoutInverse)
    assert torch.equal(layer.weight, before)


def test_a_failed_registration_leaves_the_weight_overwritten():
    """Trap: a registration that fails after ``right_inverse`` keeps the unconstrained values."""

    class WrongShape(Naive):
        def forward(self, original: Tensor) -> Tensor:
            return original[0]

    class OursWrongShape(NegativeDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -x.exp()[:1]

        def inverse(self, d: Tensor) -> Tensor:
            return d.neg().log()

    before = feasible().weight
    layer = feasible()
    with pytest.raises(ValueError, match="shape"):
        naive(layer, WrongShape)
    assert not torch.equal(layer.weight, before)
    ours = feasible()
    with pytest.raises(ValueError, match="map"):
        register_negative_diagonal(ours, map=OursWrongShape)
    assert type(ours) is nn.Linear
    assert torch.equal(ours.weight, before)


def test_a_tied_weight_is_rewritten():
    """Trap: registering one side of a tied pair rewrites the parameter under the other."""

    def tied() -> nn.ModuleList:
        model = nn.ModuleList([feasible(), feasible()])
        model[1].weight = model[0].weight
        return model

    before = feasible().weight
    model = tied()
    naive(model[0])
    assert not torch.equal(model[1].weight, before)
    ours = tied()
    with pytest.raises(ValueError, match=r"0\.weight.*1\.weight"):
        register_negative_diagonal(ours, "0.weight")
    assert torch.equal(ours[1].weight, before)


def test_the_value_jumps_when_a_second_parametrization_comes():
    """Trap: on a parametrized tensor, ``right_inverse`` of the newcomer is not applied."""

    def halved() -> nn.Module:
        layer = feasible()
        parametrize.register_parametrization(layer, "weight", Half())
        return layer

    before = feasible().weight
    assert not naive(halved()).weight.allclose(before)
    assert register_negative_diagonal(halved()).weight.allclose(before)


def test_a_second_registration_goes_unnoticed():
    """Trap: the same parametrization can be registered twice."""
    naive(naive(feasible()))
    with pytest.raises(ValueError, match="registered"):
        register_negative_diagonal(register_negative_diagonal(feasible()))


def test_a_naive_diagonal_of_an_lstm_is_that_of_its_first_gate():
    """Trap: the gates of an LSTM are stacked, and ``diagonal()`` ends with the first."""
    torch.manual_seed(0)
    layer, ours = nn.LSTM(3, 8), nn.LSTM(3, 8)
    parametrize.register_parametrization(layer, "weight_hh_l0", NaiveFlip())
    register_negative_diagonal(ours, "weight_hh_l0")

    def gates(module: nn.Module) -> Tensor:
        return module.weight_hh_l0.unflatten(0, (4, 8)).diagonal(dim1=1, dim2=2)

    assert (gates(layer)[0] < 0).all()
    assert (gates(layer)[1:] > 0).any()
    assert (gates(ours) < 0).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_have_no_negative_diagonal_are_taken(dtype):
    """Trap: tensors of any dtype can be parametrized, and fail later or mean nothing."""

    def module() -> nn.Module:
        module = nn.Module()
        module.register_buffer("weight", torch.eye(4).to(dtype))
        return module

    naive(module(), nn.Identity)
    with pytest.raises(TypeError, match="float"):
        register_negative_diagonal(module())
