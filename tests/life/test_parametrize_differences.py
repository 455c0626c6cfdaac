"""Where PyTorch's own door falls short of what a user expects, and ours does not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.life.test_parametrize_contract import by_pytorch, by_us
from tests.support.asserts import assert_same_bits
from tests.support.modules import Half, linear
from tests.support.tables import CLASSES


def test_only_ours_pickles():
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(by_pytorch(linear(), CLASSES["exp"]))
    layer = by_us(linear(), CLASSES["exp"])
    assert_same_bits(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


def test_only_by_us_a_copy_can_be_baked_alone():
    for door, kept in ((by_pytorch, False), (by_us, True)):
        layer = door(linear(-2.0), CLASSES["exp"])
        parametrize.remove_parametrizations(copy.deepcopy(layer), "weight")
        assert hasattr(layer, "weight") is kept


def test_only_by_us_a_newcomer_keeps_the_value_of_a_chain():
    for door, kept in ((by_pytorch, False), (by_us, True)):
        layer = parametrize.register_parametrization(linear(-2.0), "weight", Half())
        weight = layer.weight.detach().clone()
        door(layer, CLASSES["exp"])
        assert torch.allclose(layer.weight, weight) is kept


def test_only_by_us_a_parameter_can_be_assigned():
    with pytest.raises(KeyError, match="already exists"):
        by_pytorch(linear(), CLASSES["exp"]).weight = nn.Parameter(-torch.ones(3, 3))
    layer = by_us(linear(), CLASSES["exp"])
    layer.weight = nn.Parameter(-torch.ones(3, 3))
    torch.testing.assert_close(layer.weight, -torch.ones(3, 3))


def test_only_by_us_another_shape_is_refused():
    by_pytorch(linear(), CLASSES["exp"]).weight = -torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(3, 3\)"):
        by_us(linear(), CLASSES["exp"]).weight = -torch.ones(2, 2)
