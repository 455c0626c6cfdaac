"""Removing leaves a stock module with the last weight, and nothing else is touched."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_same_bits
from tests.support.modes import switched
from tests.support.modules import linear
from tests.support.tables import every_layer_once_every_map_somewhere, grouped

WAYS = {
    "ours": remove_negative_diagonal,
    "pytorch's": parametrize.remove_parametrizations,
    "pytorch's, not baked": partial(parametrize.remove_parametrizations, leave_parametrized=False),
}
every_way = pytest.mark.parametrize("remove", WAYS.values(), ids=WAYS)


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


@every_way
def test_after_any_removal_nothing_of_ours_acts_and_another_map_can_come(remove):
    layer = nn.Linear(3, 3)
    for kind in ("exp", "softplus", "clamp"):
        register_negative_diagonal(layer, map=kind, infeasible="reflect")
        remove(layer, "weight")
        assert type(layer) is nn.Linear
        assert vars(layer).keys() == vars(nn.Linear(3, 3)).keys()
        assert not layer._load_state_dict_pre_hooks
        state = nn.Linear(3, 3).state_dict()
        layer.load_state_dict(state, strict=True)
        assert torch.equal(layer.weight, state["weight"])


@every_way
def test_one_of_two_tensors_of_one_of_two_modules_goes_alone(remove):
    layer = register_negative_diagonal(nn.GRU(3, 3, 2), "weight_hh*", infeasible="reflect")
    other = copy.deepcopy(layer)
    kept = other.weight_hh_l0.clone()
    remove(layer, "weight_hh_l0")
    assert isinstance(layer.weight_hh_l0, nn.Parameter)
    assert torch.equal(other.weight_hh_l0, kept)
    other.weight_hh_l0 = 2 * kept
    torch.testing.assert_close(other.weight_hh_l0, 2 * kept)
    state = nn.GRU(3, 3, 2).state_dict()
    layer.load_state_dict(state, strict=True)
    for each in (layer, pickle.loads(pickle.dumps(copy.deepcopy(layer)))):
        assert torch.equal(each.weight_hh_l0, state["weight_hh_l0"])
        assert isinstance(each.weight_hh_l0, nn.Parameter)
        assert (grouped(3)(each.weight_hh_l1) < 0).all()
    register_negative_diagonal(layer, "weight_hh_l0")
    assert (grouped(3)(layer.weight_hh_l0) < 0).all()
    for name in ("weight_hh_l0", "weight_hh_l1"):
        remove(layer, name)
    assert type(layer) is nn.GRU
    for each in (layer, other):
        each(torch.ones(1, 1, 3))[0].sum().backward()


def test_removal_with_a_graph_that_is_alive_under_swapping():
    model = register_negative_diagonal(nn.Sequential(linear(), linear()), "*.weight")
    before = [layer.weight.detach().clone() for layer in model]
    swap = torch.__future__.set_swap_module_params_on_conversion
    with switched(swap, there=True, back=False):
        output = model(torch.ones(1, 3))
        remove_negative_diagonal(model, "*.weight")
    output.sum().backward()
    for layer, weight in zip(model, before, strict=True):
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, weight)
