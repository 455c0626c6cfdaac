"""Whatever a registered module goes through, it goes on computing, constraining and training."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from negdiag_param import init_, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import (
    assert_alive,
    assert_negative,
    diagonal_of,
    original_of,
    parametrization_of,
    registered,
    value_of,
    weight_of,
)
from tests.support.tables import Layer, every_layer_once_every_map_somewhere

Event = Callable[[Layer, nn.Module], nn.Module]
NAMES = ("linear", "conv2d_groups", "transposed1d", "gru", "lstm", "raw")
CHANGES: dict[str, Event] = {}


def changes(event: Event) -> Event:
    """Marks an event that the module itself goes through, with a new weight or its own."""
    CHANGES[event.__name__] = event
    return event


@changes
def meta_then_to_empty_and_reset(layer, module):
    module.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.reset_parameters()
    return module


@changes
def reset_parameters(layer, module):
    before = value_of(layer, module)
    module.reset_parameters()
    assert not torch.equal(value_of(layer, module), before)
    return module


@changes
def initialized(layer, module):
    init_(module, layer.tensor_name, nn.init.constant_, 0.5)
    assert value_of(layer, module).abs().allclose(torch.tensor(0.5))
    return module


@changes
def train_and_eval(layer, module):
    before = layer.run(module)
    torch.testing.assert_close(layer.run(module.eval()), before)
    return module.train()


@changes
def to_double(layer, module):
    before = value_of(layer, module)
    module.to(torch.float64)
    assert weight_of(layer, module).dtype == torch.float64
    torch.testing.assert_close(value_of(layer, module).float(), before)
    return module


@changes
def bfloat16_and_back(layer, module):
    before = value_of(layer, module)
    module.bfloat16()
    assert weight_of(layer, module).dtype == torch.bfloat16
    assert_negative(diagonal_of(layer, module))
    torch.testing.assert_close(value_of(layer, module).float(), before, rtol=0.05, atol=0.01)
    return module.float()


@changes
def half_and_back(layer, module):
    before = value_of(layer, module)
    module.half()
    assert weight_of(layer, module).dtype == torch.float16
    assert_negative(diagonal_of(layer, module))
    torch.testing.assert_close(value_of(layer, module).float(), before, rtol=0.01, atol=0.01)
    return module.float()


@changes
def removed_and_registered_again(layer, module):
    before = value_of(layer, module)
    template = parametrization_of(layer, module)
    remove_negative_diagonal(module, layer.tensor_name)
    register_negative_diagonal(module, layer.tensor_name, map=template)
    torch.testing.assert_close(value_of(layer, module), before)
    return module


@changes
def copy_removed(layer, module):
    before = value_of(layer, module)
    baked = remove_negative_diagonal(copy.deepcopy(module), layer.tensor_name)
    assert not parametrize.is_parametrized(baked)
    assert torch.equal(value_of(layer, baked), before)
    return module


@changes
def original_of_a_copy_removed(layer, module):
    replica = copy.deepcopy(module)
    remove_negative_diagonal(module, layer.tensor_name)
    return replica


@changes
def functional_call_with_another_original(layer, module):
    key = f"parametrizations.{layer.tensor_name}.original"
    other = original_of(layer, module).detach() - 1
    with torch.no_grad():
        found = functional_call_output(layer, module, {key: other})
        replica = copy.deepcopy(module)
        original_of(layer, replica).copy_(other)
        torch.testing.assert_close(found, layer.run(replica))
    return module


def functional_call_output(layer, module, tensors):
    class Call(nn.Module):
        def parameters(self):
            return module.parameters()

        def forward(self, x):
            return functional_call(module, tensors, (x,))

    return layer.run(Call())


@changes
def frozen_and_thawed(layer, module):
    module.requires_grad_(False)
    assert not weight_of(layer, module).requires_grad
    return module.requires_grad_(True)


@changes
def shared_memory(layer, module):
    before = value_of(layer, module)
    module.share_memory()
    assert original_of(layer, module).is_shared()
    assert torch.equal(value_of(layer, module), before)
    return module


@pytest.mark.parametrize("event", CHANGES)
@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_the_module_lives_on(event, layer, map):
    bystander = registered(layer, map)
    if "reset" in event and not hasattr(bystander, "reset_parameters"):
        pytest.skip("nothing to reset")
    before = value_of(layer, bystander)
    module = CHANGES[event](layer, copy.deepcopy(bystander))
    assert_alive(layer, module)
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, bystander)
