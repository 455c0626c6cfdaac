"""A negative diagonal beside other parametrizations of the same tensor."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import reflected
from tests.support.modules import Half
from tests.support.tables import LAYERS, every_map


class Square(nn.Module):
    """Has no inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.square()


def linear_with(parametrization: nn.Module | None = None) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    if parametrization is not None:
        parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


@every_map
def test_ours_after_another_keeps_the_value(map):
    expected = reflected(LAYERS["linear"], linear_with(Half()).weight)
    module = register_negative_diagonal(linear_with(Half()), map=map)
    torch.testing.assert_close(module.weight, expected)
    module.weight = expected * 3
    torch.testing.assert_close(module.weight, expected * 3)
    module.weight.sum().backward()
    assert module.parametrizations.weight.original.grad.diagonal().count_nonzero() == 4


@every_map
def test_ours_after_weight_norm_keeps_the_value(map):
    stock = parametrizations.weight_norm(linear_with())
    expected = reflected(LAYERS["linear"], stock.weight)
    module = register_negative_diagonal(parametrizations.weight_norm(linear_with()), map=map)
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


@every_map
def test_a_chain_pickles(map):
    module = register_negative_diagonal(linear_with(Half()), map=map)
    assert torch.equal(pickle.loads(pickle.dumps(module)).weight, module.weight)


def test_another_after_ours_works_on_its_output():
    module = register_negative_diagonal(linear_with())
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


def test_the_state_of_a_chain_loads_into_a_like_one():
    source = register_negative_diagonal(linear_with(Half()))
    target = register_negative_diagonal(linear_with(Half()))
    source.weight = -torch.eye(4)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target.weight, source.weight)


def over_two_originals() -> nn.Linear:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    return register_negative_diagonal(layer, infeasible="reflect")


def test_removal_over_two_originals_keeps_the_value():
    layer = over_two_originals()
    value = layer.weight.detach().clone()
    remove_negative_diagonal(layer)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight.detach(), value)


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (3, 3), (3, 6)], ids=str)
def test_a_weight_of_another_shape_is_refused_over_two_originals(shape):
    layer = over_two_originals()
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"weight: expected originals of shapes .*\(3, 4\)"):
        layer.weight = -torch.ones(shape)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
