"""A negative diagonal beside other parametrizations, of the same tensor and of others."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_negative, reflected
from tests.support.modules import Half
from tests.support.tables import LAYERS, every_map


def halved(module: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(module, name, Half())


def normed(module: nn.Module, name: str = "weight") -> nn.Module:
    """In two originals, with a hook that does not pickle."""
    return parametrizations.weight_norm(module, name)


every_other = pytest.mark.parametrize("other", [halved, normed])


@every_map
@every_other
def test_ours_after_another_keeps_the_value_and_has_a_life(other, map):
    torch.manual_seed(0)
    stock = nn.Linear(4, 4)
    module = other(copy.deepcopy(stock))
    expected = reflected(LAYERS["linear"], module.weight)
    register_negative_diagonal(module, map=map)
    torch.testing.assert_close(module.weight, expected)
    replica = copy.deepcopy(module)
    assert torch.equal(replica.weight, module.weight)
    if other is halved:
        assert torch.equal(pickle.loads(pickle.dumps(module)).weight, module.weight)
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
    replica.load_state_dict(module.state_dict())
    assert torch.equal(replica.weight, module.weight)
    value = module.weight.detach().clone()
    remove_negative_diagonal(module)
    assert type(module) is nn.Linear
    torch.testing.assert_close(module.weight.detach(), value)


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (3, 3), (3, 6)], ids=str)
def test_a_weight_of_another_shape_is_refused_over_two_originals(shape):
    layer = register_negative_diagonal(normed(nn.Linear(4, 3)), infeasible="reflect")
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"weight: expected originals of shapes .*\(3, 4\)"):
        layer.weight = -torch.ones(shape)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("ours_first", [False, True])
@every_other
def test_another_tensor_of_the_module_has_its_own(other: Callable, ours_first):
    def made() -> nn.Module:
        steps = [
            lambda module: other(module, "weight_ih_l0"),
            lambda module: register_negative_diagonal(module, "weight_hh_l0"),
        ]
        module = nn.LSTM(3, 4)
        for step in reversed(steps) if ours_first else steps:
            step(module)
        return module

    module, target, x = made(), made(), torch.randn(2, 1, 3)
    expected = module(x)[0]
    replicas = [copy.deepcopy(module)]
    if other is halved:
        replicas.append(pickle.loads(pickle.dumps(module)))
    for replica in replicas:
        torch.testing.assert_close(replica(x)[0], expected)
        with torch.no_grad():
            for parameter in replica.parameters():
                parameter.sub_(0.1)
        torch.testing.assert_close(module(x)[0], expected)
    target.load_state_dict(module.state_dict())
    torch.testing.assert_close(target(x)[0], expected)
    remove_negative_diagonal(module, "weight_hh_l0")
    for each, name, left in (
        (module, "weight_ih_l0", ()),
        (target, "weight_ih_l0", ("weight_hh_l0",)),
        (target, "weight_hh_l0", ()),
    ):
        parametrize.remove_parametrizations(each, name)
        assert type(each) is nn.LSTM or left
        assert all(parametrize.is_parametrized(each, name) for name in left)
        torch.testing.assert_close(each(x)[0], expected)
