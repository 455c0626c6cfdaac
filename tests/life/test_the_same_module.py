"""Whatever a registered module goes through, it goes on computing, constraining and training."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from negdiag_param import remove_negative_diagonal
from tests.support.asserts import (
    assert_alive,
    assert_negative,
    diagonal_of,
    original_of,
    registered,
    value_of,
    weight_of,
)
from tests.support.tables import LAYERS, Layer, every_layer_once_every_map_somewhere

Event = Callable[[Layer, nn.Module], nn.Module]


def reset_after_to_empty(layer, module):
    module.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.reset_parameters()
    return module


def cast(dtype: torch.dtype, **tolerance: float) -> Event:
    def event(layer, module):
        before = value_of(layer, module)
        module.to(dtype)
        assert weight_of(layer, module).dtype == dtype
        assert_negative(diagonal_of(layer, module))
        torch.testing.assert_close(value_of(layer, module).float(), before, **tolerance)
        return module if dtype.itemsize > 2 else module.float()

    return event


def copy_removed(layer, module):
    before = value_of(layer, module)
    baked = remove_negative_diagonal(copy.deepcopy(module), layer.tensor_name)
    assert not parametrize.is_parametrized(baked)
    assert torch.equal(value_of(layer, baked), before)
    return module


def removed_behind_a_copy(layer, module):
    replica = copy.deepcopy(module)
    remove_negative_diagonal(module, layer.tensor_name)
    return replica


def called_with_another_original(layer, module):
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x):
            key = f"parametrizations.{layer.tensor_name}.original"
            return functional_call(module, {key: other}, (x,))

    other = original_of(layer, module).detach() - 1
    replica = copy.deepcopy(module)
    with torch.no_grad():
        original_of(layer, replica).copy_(other)
        torch.testing.assert_close(layer.run(Call()), layer.run(replica))
    return module


def shared_memory(layer, module):
    before = value_of(layer, module)
    module.share_memory()
    assert original_of(layer, module).is_shared()
    assert torch.equal(value_of(layer, module), before)
    return module


EVENTS: dict[str, Event] = {
    "reset after to_empty": reset_after_to_empty,
    "to double": cast(torch.float64),
    "bfloat16 and back": cast(torch.bfloat16, rtol=0.05, atol=0.01),
    "half and back": cast(torch.float16, rtol=0.01, atol=0.01),
    "copy removed": copy_removed,
    "removed behind a copy": removed_behind_a_copy,
    "called with another original": called_with_another_original,
    "shared memory": shared_memory,
}


@pytest.mark.parametrize("event", EVENTS)
@every_layer_once_every_map_somewhere("linear", "conv2d_groups", "lstm", somewhere=("linear",))
def test_the_module_lives_on(event, layer, map):
    bystander = registered(layer, map)
    before = value_of(layer, bystander)
    module = EVENTS[event](layer, copy.deepcopy(bystander))
    assert_alive(layer, module)
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, bystander)


def answer(queue, answers) -> None:
    module = queue.get()
    with torch.no_grad():
        answers.put(module.weight.sum().item())
        module.parametrizations.weight.original.zero_()
        answers.put(module.weight.sum().item())


@pytest.mark.slow
def test_a_spawned_process_shares_the_original():
    module = registered(LAYERS["linear"], "exp").share_memory()
    context = torch.multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=answer, args=(queue, answers))
    process.start()
    queue.put(module)
    expected = module.weight.sum().item()
    assert answers.get() == pytest.approx(expected)
    assert answers.get() == pytest.approx(-4)
    process.join()
    assert module.weight.sum().item() == pytest.approx(-4)
