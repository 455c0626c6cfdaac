"""A negative diagonal beside other parametrizations, of the same tensor and of others."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_negative, first, reflected
from tests.support.modules import Half
from tests.support.tables import LAYERS, every_map


def halved(module: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(module, name, Half())


def normed(module: nn.Module, name: str = "weight") -> nn.Module:
    """In two originals, with a hook that does not pickle."""
    return parametrizations.weight_norm(module, name)


every_other = pytest.mark.parametrize("other", [halved, normed])


def assert_lives(made: Callable[[], nn.Module], other: Callable, name: str, x: Tensor) -> nn.Module:
    """Copies, pickles and checkpoints of a module carry what it computes, and copies live apart."""
    module, target = made(), made()
    expected = first(module(x))
    replicas = [copy.deepcopy(module)]
    if other is halved:
        replicas.append(pickle.loads(pickle.dumps(module)))
    for replica in replicas:
        torch.testing.assert_close(first(replica(x)), expected)
        with torch.no_grad():
            for parameter in replica.parameters():
                parameter.sub_(0.1)
        torch.testing.assert_close(first(module(x)), expected)
    target.load_state_dict(module.state_dict())
    torch.testing.assert_close(first(target(x)), expected)
    remove_negative_diagonal(module, name)
    assert not parametrize.is_parametrized(module, name)
    torch.testing.assert_close(first(module(x)), expected)
    return target


@every_map
@every_other
def test_ours_after_another_keeps_the_value_and_has_a_life(other, map):
    def made() -> nn.Module:
        return register_negative_diagonal(other(nn.Linear(4, 4)), map=map)

    stock = other(nn.Linear(4, 4))
    expected = reflected(LAYERS["linear"], stock.weight)
    module = register_negative_diagonal(stock, map=map)
    torch.testing.assert_close(module.weight, expected)
    module.weight = expected * 3
    torch.testing.assert_close(module.weight, expected * 3)
    (module.weight - 1).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parametrizations.weight.parameters():
            parameter.sub_(parameter.grad)
    assert not module.weight.allclose(expected * 3)
    assert_negative(module.weight.diagonal())
    with parametrize.cached():
        assert module.weight is module.weight
    assert_lives(made, other, "weight", torch.randn(2, 4))


@pytest.mark.parametrize("ours_first", [False, True])
@every_other
def test_another_tensor_of_the_module_has_its_own(other, ours_first):
    doors = {"weight_ih_l0": other, "weight_hh_l0": register_negative_diagonal}
    order = sorted(doors, reverse=not ours_first)

    def made() -> nn.Module:
        module = nn.LSTM(3, 4)
        for name in order:
            doors[name](module, name)
        return module

    x = torch.randn(2, 1, 3)
    module = assert_lives(made, other, "weight_hh_l0", x)
    expected = module(x)[0]
    for name, left in zip(order, (order[1:], []), strict=True):
        parametrize.remove_parametrizations(module, name)
        assert [name for name in order if parametrize.is_parametrized(module, name)] == left
        torch.testing.assert_close(module(x)[0], expected)
    assert type(module) is nn.LSTM
