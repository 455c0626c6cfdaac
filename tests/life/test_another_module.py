"""Every way in which another module gets the weight: both live on, apart."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import negative_diagonals, plain_state_dict, register_negative_diagonal
from tests.support.asserts import (
    assert_alive,
    assert_independent,
    original_of,
    parametrization_of,
    registered,
    stock_with,
    value_of,
    weight_of,
)
from tests.support.tables import LAYERS, Layer, every_layer_once_every_map_somewhere

Event = Callable[[Layer, nn.Module, Path], nn.Module]
State = dict[str, Any]


def twin(layer: Layer, module: nn.Module) -> nn.Module:
    """Another registered module with the same map, and other values."""
    template = parametrization_of(layer, module)
    other = register_negative_diagonal(layer.make(), layer.tensor_name, map=template)
    assert not torch.equal(value_of(layer, other), value_of(layer, module))
    return other


def revived(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def copying(again: Callable[[nn.Module], nn.Module], backward: bool = False) -> Event:
    """After a forward pass."""

    def event(layer, module, path):
        output = layer.run(module).sum()
        if backward:
            output.backward()
        return again(module)

    return event


def copied_while_cached(layer, module, path):
    with parametrize.cached(), torch.no_grad():
        weight_of(layer, module)
        replica = copy.deepcopy(module)
        original_of(layer, replica).sub_(0.25)
        assert not torch.equal(weight_of(layer, replica), weight_of(layer, module))
        original_of(layer, replica).copy_(original_of(layer, module))
    return replica


def averaged(layer, module, path):
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        average.update_parameters(module)
    return average.module


def through_a_file(whole: Any, path: Path, weights_only: bool = True) -> Any:
    torch.save(whole, path / "whole.pt")
    return torch.load(path / "whole.pt", weights_only=weights_only)


def through_safetensors(state: State, path: Path) -> State:
    save_file(state, path / "state.safetensors")
    return load_file(path / "state.safetensors")


def loading(
    state_of: Callable[[Layer, nn.Module, Path], State],
    into: Callable[[nn.Module], nn.Module] = lambda module: module,
    **how: bool,
) -> Event:
    def event(layer, module, path):
        other = into(twin(layer, module))
        other.load_state_dict(state_of(layer, module, path), **how)
        return other

    return event


def plain(layer: Layer, module: nn.Module, path: Path) -> State:
    return stock_with(layer, module).state_dict()


def plain_through_a_stock_module(layer, module, path):
    stock = layer.make()
    stock.load_state_dict(plain_state_dict(module), strict=True)
    return stock.state_dict()


def assigned(layer, module, path):
    other = twin(layer, module)
    with torch.no_grad():
        for name, parameter in stock_with(layer, module).named_parameters():
            setattr(other, name, parameter)
        for name, buffer in module.named_buffers():
            other.get_buffer(name).copy_(buffer)
    return other


def registered_from_a_stock_module(layer, module, path):
    template = parametrization_of(layer, module)
    return register_negative_diagonal(stock_with(layer, module), layer.tensor_name, map=template)


EVENTS: dict[str, Event] = {
    "deepcopy": lambda layer, module, path: copy.deepcopy(copy.deepcopy(module)),
    "deepcopy after forward": copying(copy.deepcopy),
    "deepcopy after backward": copying(copy.deepcopy, backward=True),
    "deepcopy while cached": copied_while_cached,
    "averaged": averaged,
    "pickle": lambda layer, module, path: revived(module),
    "pickle after forward": copying(revived),
    "saved as a whole": lambda layer, module, path: through_a_file(module, path, False),
    "state": loading(lambda layer, module, path: through_a_file(module.state_dict(), path)),
    "state, assigned": loading(lambda _, m, path: copy.deepcopy(m.state_dict()), assign=True),
    "plain": loading(plain),
    "plain, assigned": loading(plain, assign=True),
    "plain, from meta": loading(plain, into=lambda module: module.to("meta"), assign=True),
    "plain, through a stock module": loading(plain_through_a_stock_module),
    "safetensors": loading(lambda _, m, path: through_safetensors(m.state_dict(), path)),
    "safetensors, plain": loading(
        lambda _, m, path: through_safetensors(plain_state_dict(m), path)
    ),
    "assigned": assigned,
    "registered from a stock module": registered_from_a_stock_module,
}


@every_layer_once_every_map_somewhere("linear", "lstm", "raw", somewhere=("linear",))
@pytest.mark.parametrize("event", EVENTS)
def test_another_module_gets_the_weight(event, map, layer, tmp_path):
    module = registered(layer, map)
    before = value_of(layer, module)
    replica = EVENTS[event](layer, module, tmp_path)
    assert torch.equal(value_of(layer, module), before)
    torch.testing.assert_close(value_of(layer, replica), before)
    for alive in (replica, module):
        assert_alive(layer, alive)
    assert_independent(layer, module, replica)


class WithSlots(nn.Linear):
    __slots__ = ("note",)


class WithState(nn.Linear):
    def __getstate__(self):
        return {**self.__dict__, "scratch": None}


class WithOwnCopy(nn.Linear):
    def __deepcopy__(self, memo):
        replica = type(self)(self.in_features, self.out_features)
        memo[id(self)] = replica
        if parametrize.is_parametrized(self):
            replica.parametrizations = copy.deepcopy(self.parametrizations, memo)
            del replica._parameters["weight"]
        replica.load_state_dict(self.state_dict())
        replica.copies = getattr(self, "copies", 0) + 1
        return replica


def test_how_a_module_customises_its_copies_is_respected():
    layer, slotted, stateful, own = LAYERS["linear"], WithSlots(4, 4), WithState(4, 4), WithOwnCopy
    slotted.note, stateful.scratch = "kept", [1]
    module = register_negative_diagonal(own(4, 4))
    for each in (slotted, stateful):
        register_negative_diagonal(each)
    replica = copy.deepcopy(module)
    assert copy.deepcopy(slotted).note == "kept"
    assert revived(stateful).scratch is None
    assert torch.equal(revived(stateful).weight, stateful.weight)
    assert replica.copies == copy.deepcopy(own(4, 4)).copies == 1
    assert_alive(layer, replica)
    assert_independent(layer, module, replica)


def test_copies_keep_what_is_shared_in_a_model():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.ModuleDict({"a": encoder, "b": encoder, "c": nn.Linear(4, 4)})
    register_negative_diagonal(model, "*.weight")
    replica = revived(copy.deepcopy(model))
    assert replica["a"][0] is replica["b"][0]
    assert replica["a"][0] is not model["a"][0]
    assert len(list(negative_diagonals(replica))) == 2


def test_a_shallow_copy_shares_the_original():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    replica = copy.copy(layer)
    assert replica.parametrizations.weight.original is layer.parametrizations.weight.original
    assert torch.equal(replica.weight, layer.weight)
