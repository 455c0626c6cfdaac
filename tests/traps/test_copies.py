"""Traps of copying and pickling."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.traps.naive import NaiveFlip, feasible, naive, negative


def test_a_copy_inside_cached_returns_the_weight_of_its_source():
    """Trap: deep copies share the injected class, whose cache knows them as one module."""

    def copied_inside_cached(layer: nn.Module) -> tuple[Tensor, Tensor]:
        replica = copy.deepcopy(layer)
        with torch.no_grad():
            replica.parametrizations.weight.original.sub_(1)
            with parametrize.cached():
                return layer.weight, replica.weight

    assert torch.equal(*copied_inside_cached(naive(feasible())))
    assert not torch.equal(*copied_inside_cached(register_negative_diagonal(feasible())))


def test_removing_from_a_copy_breaks_its_source():
    """Trap: ``remove_parametrizations`` on a copy deletes the property of the shared class."""
    layer = naive(feasible())
    parametrize.remove_parametrizations(copy.deepcopy(layer), "weight")
    with pytest.raises(AttributeError):
        layer.weight  # noqa: B018
    ours = register_negative_diagonal(feasible())
    remove_negative_diagonal(copy.deepcopy(ours))
    assert negative(ours)
    parametrize.remove_parametrizations(copy.deepcopy(ours), "weight")
    assert negative(ours)


def test_a_parametrized_module_does_not_pickle():
    """Trap: a parametrized module can neither be pickled nor saved as a whole."""
    with pytest.raises(RuntimeError, match="state_dict"):
        torch.save(naive(feasible()), io.BytesIO())
    buffer = io.BytesIO()
    ours = register_negative_diagonal(feasible())
    torch.save(ours, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).weight, ours.weight)


def test_an_rnn_cannot_be_copied_after_a_forward_pass():
    """Trap: an RNN keeps mapped weights, which are not leaves, and deepcopy refuses those."""
    layer, ours = nn.RNN(3, 4), nn.RNN(3, 4)
    parametrize.register_parametrization(layer, "weight_hh_l0", NaiveFlip())
    register_negative_diagonal(ours, "weight_hh_l0")
    for module in (layer, ours):
        module(torch.zeros(2, 1, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    assert torch.equal(copy.deepcopy(ours).weight_hh_l0, ours.weight_hh_l0)
