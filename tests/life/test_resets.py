"""Resets equal those of the stock module."""

import copy

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import (
    assert_negative,
    assert_same_state,
    diagonal_of,
    reflected,
    registered,
    value_of,
)
from tests.support.tables import LAYERS, every_layer_once_every_map_somewhere, grouped

RESET = [name for name in LAYERS if hasattr(LAYERS[name].make(), "reset_parameters")]


@every_layer_once_every_map_somewhere(*RESET)
def test_a_reset_equals_that_of_the_stock_module(layer, map):
    module, stock = registered(layer, map), layer.make()
    bystander = copy.deepcopy(module)
    before = value_of(layer, bystander)
    for resetting in (module, stock):
        torch.manual_seed(11)
        resetting.reset_parameters()
    for key, value in stock.named_parameters():
        expected = reflected(layer, value) if key == layer.tensor_name else value
        torch.testing.assert_close(getattr(module, key), expected)
    assert torch.equal(value_of(layer, bystander), before)
    assert_negative(diagonal_of(layer, module))


@pytest.mark.parametrize(("tensor_name", "blocks"), [("in_proj_weight", 3), ("out_proj.weight", 1)])
def test_multihead_attention_resets_as_it_does_without_us(tensor_name, blocks):
    stock, module = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    register_negative_diagonal(module, tensor_name, blocks=blocks)
    for resetting in (stock, module):
        torch.manual_seed(11)
        resetting._reset_parameters()
    expected = stock.in_proj_weight.detach().clone()
    if blocks == 3:
        grouped(3)(expected).abs_().neg_()
    # A reset of the whole leaves out_proj.weight alone.
    torch.testing.assert_close(module.in_proj_weight, expected)


def test_a_reset_on_two_registered_tensors_draws_in_the_order_of_the_stock_module():
    stock, module = nn.GRU(3, 4, 2), nn.GRU(3, 4, 2)
    register_negative_diagonal(module, "weight_hh*", map="sign_flip")
    for resetting in (stock, module):
        torch.manual_seed(11)
        resetting.reset_parameters()
    for key, value in stock.named_parameters():
        torch.testing.assert_close(getattr(module, key).abs(), value.abs())


def test_applying_a_reset_to_a_model_reaches_registered_layers():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    register_negative_diagonal(model, "*.weight")
    before = [model[0].weight.clone(), model[2].weight.clone()]
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    for layer, old in zip((model[0], model[2]), before, strict=True):
        assert not torch.equal(layer.weight, old)
        assert (layer.weight.diagonal() < 0).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_reset_that_fails_changes_nothing(error):
    class Failing(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "made"):
                raise error("stopped")

    failing = register_negative_diagonal(Failing(4, 4))
    failing.made = True
    before = copy.deepcopy(failing)
    with pytest.raises(error, match="stopped"):
        failing.reset_parameters()
    assert_same_state(failing, before)


def test_a_reset_reflects_where_assignments_are_refused():
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.abs_().neg_()
    register_negative_diagonal(layer, infeasible="error")
    for _ in range(5):
        layer.reset_parameters()
        assert_negative(layer.weight.diagonal())
