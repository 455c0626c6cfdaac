"""A negative diagonal beside other parametrizations of other tensors."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal
from tests.support.modules import Half


def test_another_tensor_of_a_pickle_has_its_own():
    # weight_norm would leave a hook behind that does not pickle.
    module = nn.LSTM(3, 4)
    parametrize.register_parametrization(module, "weight_ih_l0", Half())
    register_negative_diagonal(module, "weight_hh_l0")
    replica = pickle.loads(pickle.dumps(module))
    x = torch.randn(2, 1, 3)
    expected = module(x)[0]
    torch.testing.assert_close(replica(x)[0], expected)
    with torch.no_grad():
        for parameter in replica.parameters():
            parameter.sub_(0.1)
    torch.testing.assert_close(module(x)[0], expected)


def test_another_tensor_of_the_module_can_have_its_own():
    module = nn.LSTM(3, 4)
    parametrizations.weight_norm(module, "weight_ih_l0")
    register_negative_diagonal(module, "weight_hh_l0")
    x = torch.randn(2, 1, 3)
    expected = module(x)[0]
    replica = copy.deepcopy(module)
    torch.testing.assert_close(replica(x)[0], expected)
    with torch.no_grad():
        for parameter in replica.parameters():
            parameter.sub_(0.1)
    torch.testing.assert_close(module(x)[0], expected)
    other = nn.LSTM(3, 4)
    parametrizations.weight_norm(other, "weight_ih_l0")
    register_negative_diagonal(other, "weight_hh_l0")
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x)[0], expected)
    remove_negative_diagonal(module, "weight_hh_l0")
    torch.testing.assert_close(module(x)[0], expected)
    assert parametrize.is_parametrized(module, "weight_ih_l0")
    assert not parametrize.is_parametrized(module, "weight_hh_l0")
    parametrize.remove_parametrizations(module, "weight_ih_l0")
    assert type(module) is nn.LSTM
    torch.testing.assert_close(module(x)[0], expected)


@pytest.mark.parametrize("order", [0, 1])
def test_weight_norm_on_another_tensor_may_come_later(order):
    module = nn.LSTM(3, 4)
    register_negative_diagonal(module, "weight_hh_l0")
    parametrizations.weight_norm(module, "weight_ih_l0")
    x = torch.randn(2, 1, 3)
    expected = module(x)[0]
    replica = copy.deepcopy(module)
    torch.testing.assert_close(replica(x)[0], expected)
    names = ["weight_hh_l0", "weight_ih_l0"]
    for name in names if order else reversed(names):
        parametrize.remove_parametrizations(replica, name)
    assert type(replica) is nn.LSTM
    torch.testing.assert_close(module(x)[0], expected)


def test_a_tensor_beside_it_does_not_hinder_the_plain_state():
    module = nn.LSTM(3, 4)
    parametrizations.weight_norm(module, "weight_ih_l0")
    keys = list(module.state_dict())
    register_negative_diagonal(module, "weight_hh_l0")
    assert sorted(plain_state_dict(module)) == sorted(keys)
