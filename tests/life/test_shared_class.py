"""Registered modules of a kind share a class, and none can change it for the others."""

import abc
import copy
import gc
import inspect
import pickle
import weakref

import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.modules import Half


def linear() -> nn.Linear:
    return register_negative_diagonal(nn.Linear(3, 3))


def gru() -> nn.GRU:
    return register_negative_diagonal(nn.GRU(3, 3, 2), "weight_hh*")


def test_it_is_one_class_for_layers_copies_and_pickles():
    layer = linear()
    family = [layer, linear(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    assert len({type(member) for member in family}) == 1
    assert type(linear()) is not type(gru())


def test_it_goes_with_the_last_of_them():
    class Abstract(nn.Linear, abc.ABC):
        """Of another metaclass."""

    layer, other = (register_negative_diagonal(Abstract(3, 3)) for _ in range(2))
    gone = weakref.ref(type(other))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Abstract
    assert (other.weight.diagonal() < 0).all()
    del other
    gc.collect()
    assert gone() is None


def test_another_parametrization_on_one_leaves_the_others():
    layer, other = linear(), linear()
    bias = other.bias
    expected = layer.bias.detach().clone()
    parametrize.register_parametrization(layer, "bias", Half())
    torch.testing.assert_close(layer.bias, expected)
    assert other.bias is bias
    other.bias = nn.Parameter(torch.ones(3))
    assert (other.bias == 1).all()
    for module in (layer, other, linear()):
        replica = copy.deepcopy(module)
        torch.testing.assert_close(replica.bias, module.bias)
        replica(torch.ones(1, 3)).sum().backward()
    parametrize.remove_parametrizations(layer, "bias")
    torch.testing.assert_close(layer.bias, expected)


def test_every_attribute_can_be_looked_at():
    layer = linear()
    assert dict(inspect.getmembers(layer))["weight"].shape == (3, 3)
    inspect.getmembers(type(layer))
