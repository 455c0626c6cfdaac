"""Tied tensors are refused, shared modules are one."""

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal
from tests.support.modules import transformer


@pytest.mark.parametrize("name", ["head.weight", "embedding.weight", "*.weight"])
def test_tied_tensors_are_refused_by_both_names(name):
    model = transformer()
    model["head"].weight = model["embedding"].weight
    before = model["head"].weight.clone()
    with pytest.raises(ValueError, match="tied") as error:
        register_negative_diagonal(model, name)
    assert "head.weight" in str(error.value)
    assert "embedding.weight" in str(error.value)
    assert torch.equal(model["head"].weight, before)
    assert not list(negative_diagonals(model))
    register_negative_diagonal(model, "encoder.*.linear1.weight")


def test_a_tensor_tied_to_a_registered_one_is_refused():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    register_negative_diagonal(model, "0.weight")
    model[1].weight = model[0].parametrizations.weight.original
    with pytest.raises(ValueError, match="tied"):
        register_negative_diagonal(model, "1.weight")


@pytest.mark.parametrize("kind", [list, dict])
def test_a_container_that_holds_itself_is_no_trap(kind):
    layer = nn.Linear(4, 4)
    layer.kept = kind(enumerate("a"))
    layer.kept[0] = layer.kept
    register_negative_diagonal(layer)
    assert layer.weight.diagonal().max() < 0


def test_one_module_under_two_names_is_not_tied():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    register_negative_diagonal(model, "*.weight")
    assert [name for name, _ in negative_diagonals(model)] == ["0.weight"]
    model(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero()
