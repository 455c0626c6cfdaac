"""Every change of the original is seen through ``cache_in_eval``."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.asserts import computed, original_of, registered, weight_of
from tests.support.tables import every_layer_once_every_map_somewhere

NAMES = ("linear", "conv2d_groups", "transposed1d", "lstm")


def step(layer, module):
    optimizer = torch.optim.SGD([original_of(layer, module)], lr=0.1)
    original_of(layer, module).grad = torch.ones_like(original_of(layer, module))
    optimizer.step()


def write_in_place(layer, module):
    original_of(layer, module).mul_(0.5)


def new_storage(layer, module):
    original = original_of(layer, module)
    original.set_(original.detach().clone() - 1)


def data_of_another_tensor(layer, module):
    original_of(layer, module).data = original_of(layer, module).detach().clone() - 1


def to_double(layer, module):
    module.double()


def assigned(layer, module):
    setattr(module, layer.tensor_name, computed(layer, module) * 2)


def loaded(layer, module):
    state = {key: value - 1 for key, value in layer.make().state_dict().items()}
    module.load_state_dict(state)


def loaded_by_assignment(layer, module):
    state = copy.deepcopy(module.state_dict())
    state[f"parametrizations.{layer.tensor_name}.original"] -= 1
    module.load_state_dict(state, assign=True)


def another_parameter(layer, module):
    chain = module.parametrizations[layer.tensor_name]
    chain.original = nn.Parameter(chain.original.detach() - 1)


def written_on_the_weight(layer, module):
    weight_of(layer, module).fill_(3.0)


def trained_for_a_while(layer, module):
    module.train()
    step(layer, module)
    module.eval()


CHANGES = [
    step,
    write_in_place,
    new_storage,
    data_of_another_tensor,
    to_double,
    assigned,
    loaded,
    loaded_by_assignment,
    another_parameter,
    written_on_the_weight,
    trained_for_a_while,
]


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:.*reflected")
def test_every_change_is_seen(change, map, layer):
    module = registered(layer, map, cache_in_eval=True).eval()
    with torch.no_grad():
        before = weight_of(layer, module)
        change(layer, module)
        assert weight_of(layer, module) is not before
        assert torch.equal(weight_of(layer, module), computed(layer, module))


@pytest.mark.parametrize("block", [nullcontext, parametrize.cached])
def test_memory_that_is_used_again_is_not_taken_for_the_same(block):
    module = register_negative_diagonal(nn.Linear(64, 64), cache_in_eval=True).eval()
    original = module.parametrizations.weight.original
    with torch.no_grad(), block():
        for _ in range(20):
            original.data = torch.randn(64, 64)
            original.data = torch.randn(64, 64)  # often where the first was that was read
            assert torch.equal(module.weight, copy.deepcopy(module).weight)
