"""``parametrize.cached()``: never stale, never without gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import computed, original_of, registered, value_of, weight_of
from tests.support.tables import LAYERS, every_layer, every_layer_once_every_map_somewhere

NAMES = ("linear", "conv2d_groups", "transposed1d", "lstm")


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_a_block_computes_each_weight_once(map, layer):
    module = registered(layer, map)
    expected = value_of(layer, module)
    with parametrize.cached():
        assert weight_of(layer, module) is weight_of(layer, module)
        with parametrize.cached():
            assert weight_of(layer, module) is weight_of(layer, module)
        assert weight_of(layer, module) is weight_of(layer, module)
        assert torch.equal(weight_of(layer, module), expected)
    assert weight_of(layer, module) is not weight_of(layer, module)


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_gradients_accumulate_over_the_uses_in_a_block(map, layer):
    module = registered(layer, map)
    twice = 2 * weight_of(layer, module).square().sum()
    (expected,) = torch.autograd.grad(twice, original_of(layer, module))
    with parametrize.cached():
        loss = weight_of(layer, module).square().sum() + weight_of(layer, module).square().sum()
        loss.backward()
    torch.testing.assert_close(original_of(layer, module).grad, expected)


def test_a_block_ends_with_an_exception():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")

    def stop():
        with parametrize.cached():
            weight_of(layer, module)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert weight_of(layer, module) is not weight_of(layer, module)


def test_a_block_sees_steps_assignments_and_loading():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with parametrize.cached():
        for _ in range(3):
            layer.run(module).square().sum().backward()
            optimizer.step()
            assert torch.equal(weight_of(layer, module), computed(layer, module))
        module.weight = -torch.eye(4)
        torch.testing.assert_close(weight_of(layer, module), -torch.eye(4))
        module.load_state_dict({"weight": -2 * torch.eye(4), "bias": torch.zeros(4)})
        torch.testing.assert_close(weight_of(layer, module), -2 * torch.eye(4))
        module.double()
        assert weight_of(layer, module).dtype == torch.float64


@every_layer(*NAMES)
def test_a_block_works_in_and_around_inference_mode(layer):
    module = registered(layer, "exp")
    with parametrize.cached():
        with torch.inference_mode():
            first = weight_of(layer, module)
            assert weight_of(layer, module) is first
            assert torch.equal(first, computed(layer, module))
        assert weight_of(layer, module).requires_grad
    with torch.inference_mode(), parametrize.cached():
        assert weight_of(layer, module) is weight_of(layer, module)
        assert not weight_of(layer, module).requires_grad


def test_a_block_keeps_nothing_that_a_transform_made():
    module = registered(LAYERS["linear"], "exp")
    key = "parametrizations.weight.original"

    def run(original):
        return torch.func.functional_call(module, {key: original}, (torch.eye(4),)).sum()

    with parametrize.cached():
        before = module.weight
        grads = torch.vmap(torch.func.grad(run))(torch.zeros(2, 4, 4))
        assert torch.equal(grads, (torch.ones(4, 4) - 2 * torch.eye(4)).expand(2, 4, 4))
        assert module.weight is before


def test_a_block_tells_copies_and_modules_apart():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")
    with parametrize.cached(), torch.no_grad():
        first = weight_of(layer, module)
        replicas = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        for shift, replica in enumerate(replicas, start=1):
            original_of(layer, replica).sub_(shift)
        weights = [first, *(weight_of(layer, replica) for replica in replicas)]
        for replica, weight in zip([module, *replicas], weights, strict=True):
            assert torch.equal(weight, computed(layer, replica))
    assert not torch.equal(weights[0], weights[1])


def test_a_block_serves_modules_beside_ours():
    stock = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(stock)
    module = registered(LAYERS["linear"], "exp")
    with parametrize.cached():
        assert stock.weight is stock.weight
        assert module.weight is module.weight
        assert stock.weight is not module.weight


def test_tensors_inside_a_block_can_be_removed_and_registered():
    module = registered(LAYERS["linear"], "exp")
    with parametrize.cached():
        before = module.weight.detach().clone()
        remove_negative_diagonal(module)
        assert torch.equal(module.weight, before)
        register_negative_diagonal(module, map="softplus")
        torch.testing.assert_close(module.weight, before)


def test_a_block_keeps_what_writes_to_buffers_of_its_own():
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    register_negative_diagonal(module)
    with parametrize.cached():
        assert module.weight is module.weight
