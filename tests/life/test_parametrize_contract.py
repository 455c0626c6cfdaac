"""What PyTorch promises of any parametrization, by its own door and by ours.

Modules registered by ours share a class, and none can change it for the others.
"""

import abc
import copy
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import NegativeDiagonal, register_negative_diagonal
from tests.support.asserts import assert_same_bits
from tests.support.modules import Half, linear
from tests.support.tables import CLASSES, rows

ORIGINAL = "parametrizations.weight.original"
Door = Callable[..., nn.Module]
Kind = type[NegativeDiagonal]


def by_pytorch(layer: nn.Module, kind: Kind, unsafe: bool = False, **options: Any) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", kind(**options), unsafe=unsafe)


DOORS: dict[str, Door] = {
    "pytorch's": by_pytorch,
    "pytorch's, unsafe": partial(by_pytorch, unsafe=True),
    "ours": lambda layer, kind, **o: register_negative_diagonal(layer, map=kind, **o),
}
every_door = pytest.mark.parametrize("door", rows(DOORS))
# One whose original is the weight, one of another original, and a user's.
some_classes = pytest.mark.parametrize("kind", rows(CLASSES, ("clamp", "exp", "subclass")))


def promise(test: Callable) -> Callable:
    return every_door(some_classes(test))


@promise
def test_the_module_says_that_it_is_parametrized(door: Door, kind: Kind):
    layer = linear()
    assert not parametrize.is_parametrized(layer)
    with pytest.raises(ValueError, match="parametriz"):
        parametrize.remove_parametrizations(layer, "weight")
    door(layer, kind)
    assert parametrize.is_parametrized(layer)
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    with pytest.raises(ValueError, match="bias"):
        parametrize.remove_parametrizations(layer, "bias")
    with pytest.raises(KeyError, match="weight"):
        layer.register_buffer("weight", torch.ones(3))
    assert parametrize.type_before_parametrizations(layer) is nn.Linear
    assert type(layer).__name__ == "ParametrizedLinear"
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    assert [type(p) for p in layer.parametrizations.weight] == [kind]
    assert [name for name, _ in layer.named_parameters()] == ["bias", ORIGINAL]
    assert "weight" in dir(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert not parametrize.is_parametrized(layer)
    assert type(layer) is nn.Linear
    assert not hasattr(layer, "parametrizations")
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]


@promise
def test_gradients_and_modes_are_those_of_the_module(door: Door, kind: Kind):
    with torch.no_grad():
        layer = door(linear().requires_grad_(False).eval(), kind)
    (parametrization,) = layer.parametrizations.weight
    assert not layer.weight.requires_grad
    assert not parametrization.training
    layer.requires_grad_(True).train()
    assert parametrization.training
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero() == 3
    layer.requires_grad_(False)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert not layer.weight.requires_grad


@promise
def test_a_value_is_assigned_loaded_copied_cached_or_put_in_its_place(door: Door, kind: Kind):
    layer, value = door(linear(), kind), -torch.rand(3, 3) - 0.5
    layer.weight = value
    torch.testing.assert_close(layer.weight, value)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = door(linear(-3.0), kind)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    replica = copy.deepcopy(layer)
    for other in (loaded, replica):
        assert_same_bits(other.weight, layer.weight)
    with torch.no_grad():
        replica.parametrizations.weight.original.sub_(0.5)
    assert not torch.equal(replica.weight, layer.weight)
    assert layer.weight is not layer.weight
    with parametrize.cached():
        first = layer.weight
        assert layer.weight is first
    assert layer.weight is not first
    other = door(linear(-4.0), kind).parametrizations.weight.original
    layer.parametrizations.weight.original = nn.Parameter(other.detach().clone())
    torch.testing.assert_close(layer.weight.diagonal(), torch.full((3,), -4.0))


@promise
def test_transfer_takes_parametrization_and_value_along(door: Door, kind: Kind):
    source = door(linear(-2.0), kind)
    for names in ((), ("weight",)):
        target = linear(0.5)  # infeasible, of which nothing is said
        parametrize.transfer_parametrizations_and_params(source, target, *names)
        torch.testing.assert_close(target.weight, source.weight)
        # As for every parametrization, the two share what is trained.
        assert target.parametrizations.weight.original is source.parametrizations.weight.original
        parametrize.remove_parametrizations(target, "weight")
        assert parametrize.is_parametrized(source, "weight")


def made() -> nn.Linear:
    return register_negative_diagonal(nn.Linear(3, 3))


def test_there_is_one_class_for_layers_copies_and_pickles():
    layer = made()
    family = [layer, made(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    assert len({type(member) for member in family}) == 1
    assert type(made()) is not type(register_negative_diagonal(nn.GRU(3, 3), "weight_hh*"))


def test_the_class_goes_with_the_last_of_its_modules():
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


def test_another_parametrization_on_one_module_leaves_the_others():
    layer, other = made(), made()
    bias = other.bias
    expected = layer.bias.detach().clone()
    parametrize.register_parametrization(layer, "bias", Half())
    torch.testing.assert_close(layer.bias, expected)
    assert other.bias is bias
    other.bias = nn.Parameter(torch.ones(3))
    assert (other.bias == 1).all()
    for module in (layer, other, made()):
        for replica in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(replica.bias, module.bias)
            replica(torch.ones(1, 3)).sum().backward()
    parametrize.remove_parametrizations(layer, "bias")
    torch.testing.assert_close(layer.bias, expected)


def test_every_attribute_can_be_looked_at():
    layer = made()
    assert dict(inspect.getmembers(layer))["weight"].shape == (3, 3)
    inspect.getmembers(type(layer))
