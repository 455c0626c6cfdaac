"""Resets equal those of the stock module."""

import copy

import pytest
import torch
from torch import nn

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import (
    assert_negative,
    assert_same_state,
    diagonal_of,
    reflected,
    registered,
    value_of,
)
from tests.support.tables import LAYERS, every_layer_once_every_map_somewhere

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


SEVERAL = {
    "both layers": (lambda: nn.GRU(3, 4, 2), "weight_hh*", {}),
    "projections of inputs": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", {"blocks": 3}),
    "that of outputs": (lambda: nn.MultiheadAttention(4, 2), "out_proj.weight", {}),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_all_tensors_are_drawn_in_the_order_of_the_stock_module(case):
    make, name, options = SEVERAL[case]
    both = []
    for door in (lambda module, *_, **__: module, register_negative_diagonal):
        torch.manual_seed(0)
        module = door(make(), name, map="sign_flip", **options)
        torch.manual_seed(11)
        (getattr(module, "reset_parameters", None) or module._reset_parameters)()
        both.append({key: value.abs() for key, value in plain_state_dict(module).items()})
    torch.testing.assert_close(*both)


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
    layer = remove_negative_diagonal(register_negative_diagonal(nn.Linear(4, 4)))
    register_negative_diagonal(layer, infeasible="error")
    for _ in range(5):
        layer.reset_parameters()
        assert_negative(layer.weight.diagonal())
