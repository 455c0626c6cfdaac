"""A negative diagonal beside other parametrizations, on the same tensor and on others."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import (
    NegExpDiagonal,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.cases import MAPS


class Half(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return original / 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * 2


class Square(nn.Module):
    """Has no inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.square()


def layer(parametrization: nn.Module | None = None) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    if parametrization is not None:
        parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def reflected(weight: Tensor) -> Tensor:
    weight = weight.detach().clone()
    weight.diagonal().copy_(-weight.diagonal().abs())
    return weight


@pytest.mark.parametrize("map", MAPS)
def test_ours_after_another_keeps_the_value(map):
    expected = reflected(layer(Half()).weight)
    module = register_negative_diagonal(layer(Half()), map=MAPS[map])
    torch.testing.assert_close(module.weight, expected)
    module.weight = expected * 3
    torch.testing.assert_close(module.weight, expected * 3)
    module.weight.sum().backward()
    assert module.parametrizations.weight.original.grad.diagonal().count_nonzero() == 4


@pytest.mark.parametrize("map", MAPS)
def test_ours_after_weight_norm_keeps_the_value(map):
    stock = parametrizations.weight_norm(layer())
    expected = reflected(stock.weight)
    module = register_negative_diagonal(parametrizations.weight_norm(layer()), map=MAPS[map])
    torch.testing.assert_close(module.weight, expected)
    (module.weight - 1).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parametrizations.weight.parameters():
            parameter.sub_(parameter.grad)
    assert (module.weight.diagonal() < 0).all()
    with parametrize.cached():
        assert module.weight is module.weight
    replica = copy.deepcopy(module)
    assert torch.equal(replica.weight, module.weight)


@pytest.mark.parametrize("map", MAPS)
def test_a_chain_pickles(map):
    module = register_negative_diagonal(layer(Half()), map=MAPS[map])
    assert torch.equal(pickle.loads(pickle.dumps(module)).weight, module.weight)


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


@pytest.mark.parametrize("map", MAPS)
def test_another_tensor_of_the_module_can_have_its_own(map):
    module = nn.LSTM(3, 4)
    parametrizations.weight_norm(module, "weight_ih_l0")
    register_negative_diagonal(module, "weight_hh_l0", map=MAPS[map])
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
    register_negative_diagonal(other, "weight_hh_l0", map=MAPS[map])
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


@pytest.mark.parametrize("map", MAPS)
def test_ours_twice_is_refused(map):
    module = register_negative_diagonal(layer(), map=MAPS[map])
    before = module.weight.clone()
    with pytest.raises(ValueError, match="registered"):
        register_negative_diagonal(module, map="exp")
    assert torch.equal(module.weight, before)
    assert len(module.parametrizations.weight) == 1


def test_ours_after_our_bare_class_is_refused():
    module = layer(NegExpDiagonal(infeasible="reflect"))
    with pytest.raises(ValueError, match="registered"):
        register_negative_diagonal(module)


def test_another_after_ours_works_on_its_output():
    module = register_negative_diagonal(layer())
    before = module.weight.clone()
    parametrize.register_parametrization(module, "weight", Half())
    torch.testing.assert_close(module.weight, before / 2)
    module.weight = before
    torch.testing.assert_close(module.weight, before)
    replica = copy.deepcopy(module)
    torch.testing.assert_close(replica.weight, before)
    parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(module.weight, before)
    torch.testing.assert_close(replica.weight, before)


def test_a_predecessor_without_an_inverse_is_refused_and_nothing_changes():
    module = layer(Square())
    before = module.weight.clone()
    with pytest.raises(ValueError, match="right_inverse"):
        register_negative_diagonal(module)
    assert torch.equal(module.weight, before)
    assert len(module.parametrizations.weight) == 1


def test_only_ours_can_be_written_as_a_plain_state():
    module = register_negative_diagonal(layer(Half()))
    with pytest.raises(ValueError, match="no other parametrization"):
        plain_state_dict(module)
    beside = nn.LSTM(3, 4)
    parametrizations.weight_norm(beside, "weight_ih_l0")
    keys = list(beside.state_dict())
    register_negative_diagonal(beside, "weight_hh_l0")
    assert sorted(plain_state_dict(beside)) == sorted(keys)


def test_the_state_of_a_chain_loads_into_a_like_one():
    source = register_negative_diagonal(layer(Half()))
    target = register_negative_diagonal(layer(Half()))
    source.weight = -torch.eye(4)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target.weight, source.weight)
