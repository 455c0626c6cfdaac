"""Removing leaves a stock module with the last weight."""

import copy

import pytest
import torch
from torch import nn

from negdiag_param import (
    negative_diagonals,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import assert_same_bits
from tests.support.modules import Raw
from tests.support.tables import every_layer_once_every_map_somewhere, every_map


@every_layer_once_every_map_somewhere()
def test_removal_leaves_a_stock_module_with_the_last_weight(layer, map):
    torch.manual_seed(0)
    module = layer.make()
    stock = copy.deepcopy(module)
    parameters = list(module.parameters())
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    weight = getattr(module, layer.tensor_name).detach().clone()
    assert remove_negative_diagonal(module, layer.tensor_name) is module
    assert type(module) is type(stock)
    assert_same_bits(getattr(module, layer.tensor_name), weight)
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]
    assert list(module.state_dict()) == list(stock.state_dict())
    assert vars(module).keys() == vars(stock).keys()
    assert not module._load_state_dict_pre_hooks


def test_removing_one_of_two_leaves_the_other_loading():
    gru = nn.GRU(3, 3, 2)
    register_negative_diagonal(gru, "weight_hh*")
    remove_negative_diagonal(gru, "weight_hh_l0")
    state = nn.GRU(3, 3, 2).state_dict()
    with pytest.warns(UserWarning, match="weight_hh_l1"):
        gru.load_state_dict(state)
    assert torch.equal(gru.weight_hh_l0, state["weight_hh_l0"])
    diagonal = gru.weight_hh_l1.unflatten(0, (3, 3)).diagonal(dim1=1, dim2=2)
    assert (diagonal < 0).all()


@every_map
def test_raw_tensors_of_every_kind_together(map):
    module = Raw()
    stock = copy.deepcopy(module)
    register_negative_diagonal(module, "square", map=map)
    register_negative_diagonal(module, "batch", map=map, dims=(-2, -1))
    register_negative_diagonal(module, "vector", map=map)
    register_negative_diagonal(module, "constant", map=map)
    assert [name for name, _ in negative_diagonals(module)] == list(module.parametrizations)
    assert all((diagonal < 0).all() for _, diagonal in negative_diagonals(module))
    assert not isinstance(module.parametrizations.constant.original, nn.Parameter)
    x = torch.randn(2, 4)
    expected = module(x)
    for name in ("constant", "vector", "batch", "square"):
        remove_negative_diagonal(module, name)
    assert type(module) is Raw
    assert list(module.state_dict()) == list(stock.state_dict())
    assert not isinstance(module.constant, nn.Parameter)
    torch.testing.assert_close(module(x), expected)
