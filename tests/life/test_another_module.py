"""Every way in which another module gets the weight: both live on, apart."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import plain_state_dict, register_negative_diagonal
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
from tests.support.tables import Layer, every_layer_once_every_map_somewhere

Event = Callable[[Layer, nn.Module, Path], nn.Module]
NAMES = ("linear", "conv2d_groups", "transposed1d", "gru", "lstm", "raw")
COPIES: dict[str, Event] = {}


def copies(event: Event) -> Event:
    """Marks an event after which another module has the same weight."""
    COPIES[event.__name__] = event
    return event


def twin(layer: Layer, module: nn.Module) -> nn.Module:
    """Another registered module with the same map, and other values."""
    template = parametrization_of(layer, module)
    other = register_negative_diagonal(layer.make(), layer.tensor_name, map=template)
    assert not torch.equal(value_of(layer, other), value_of(layer, module))
    return other


@copies
def deepcopy(layer, module, path):
    return copy.deepcopy(module)


@copies
def deepcopy_of_a_deepcopy(layer, module, path):
    return copy.deepcopy(copy.deepcopy(module))


@copies
def deepcopy_after_a_forward_pass(layer, module, path):
    layer.run(module)
    return copy.deepcopy(module)


@copies
def deepcopy_after_a_backward_pass(layer, module, path):
    layer.run(module).sum().backward()
    return copy.deepcopy(module)


@copies
def deepcopy_while_cached(layer, module, path):
    with parametrize.cached(), torch.no_grad():
        weight_of(layer, module)
        replica = copy.deepcopy(module)
        original_of(layer, replica).sub_(0.25)
        assert not torch.equal(weight_of(layer, replica), weight_of(layer, module))
        original_of(layer, replica).copy_(original_of(layer, module))
    return replica


@copies
def averaged_model(layer, module, path):
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(module)
    averaged.update_parameters(module)
    return averaged.module


@copies
def pickled(layer, module, path):
    return pickle.loads(pickle.dumps(module))


@copies
def pickled_after_a_forward_pass(layer, module, path):
    layer.run(module)
    return pickle.loads(pickle.dumps(module))


@copies
def saved_and_loaded_as_a_whole(layer, module, path):
    torch.save(module, path / "module.pt")
    return torch.load(path / "module.pt", weights_only=False)


@copies
def state_dict(layer, module, path):
    torch.save(module.state_dict(), path / "state.pt")
    other = twin(layer, module)
    other.load_state_dict(torch.load(path / "state.pt", weights_only=True))
    return other


@copies
def state_dict_assigned(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    return other


@copies
def plain_checkpoint(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(stock_with(layer, module).state_dict())
    return other


@copies
def plain_checkpoint_assigned(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(stock_with(layer, module).state_dict(), assign=True)
    return other


@copies
def plain_checkpoint_from_meta(layer, module, path):
    other = twin(layer, module).to("meta")
    other.load_state_dict(stock_with(layer, module).state_dict(), assign=True)
    return other


@copies
def plain_state_dict_through_a_stock_module(layer, module, path):
    stock = layer.make()
    stock.load_state_dict(plain_state_dict(module), strict=True)
    other = twin(layer, module)
    other.load_state_dict(stock.state_dict(), strict=True)
    return other


@copies
def safetensors(layer, module, path):
    save_file(module.state_dict(), path / "state.safetensors")
    other = twin(layer, module)
    other.load_state_dict(load_file(path / "state.safetensors"))
    return other


@copies
def safetensors_of_the_plain_state(layer, module, path):
    save_file(plain_state_dict(module), path / "state.safetensors")
    other = twin(layer, module)
    other.load_state_dict(load_file(path / "state.safetensors"))
    return other


@copies
def assignment(layer, module, path):
    other = twin(layer, module)
    with torch.no_grad():
        for name, parameter in stock_with(layer, module).named_parameters():
            setattr(other, name, parameter)
        for name, buffer in module.named_buffers():
            other.get_buffer(name).copy_(buffer)
    return other


@copies
def registered_from_a_stock_module(layer, module, path):
    template = parametrization_of(layer, module)
    return register_negative_diagonal(stock_with(layer, module), layer.tensor_name, map=template)


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
@pytest.mark.parametrize("event", COPIES)
def test_another_module_gets_the_weight(event, map, layer, tmp_path):
    module = registered(layer, map)
    before = value_of(layer, module)
    replica = COPIES[event](layer, module, tmp_path)
    assert torch.equal(value_of(layer, module), before)
    torch.testing.assert_close(value_of(layer, replica), before)
    for alive in (replica, module):
        assert_alive(layer, alive)
    assert_independent(layer, module, replica)
