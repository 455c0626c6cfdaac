"""Checkpoints from before registration, and for after removal."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_same_bits, assert_same_state
from tests.support.modules import Net, registered_net, stock_net
from tests.support.tables import every_dtype, every_map


@pytest.mark.parametrize("assign", [False, True])
@every_map
def test_a_plain_checkpoint_loads(map, assign):
    net = registered_net(map)
    state = stock_net().state_dict()
    keys = list(state)
    result = net.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert list(state) == keys
    assert_same_state(net, stock_net())


@every_map
def test_the_plain_state_is_that_of_the_stock_model(map):
    net = registered_net(map)
    plain, expected = plain_state_dict(net), stock_net().state_dict()
    assert list(plain) == list(expected)
    assert plain._metadata == expected._metadata
    other = stock_net(5)
    other.load_state_dict(plain, strict=True)
    assert_same_state(net, other)
    baked = copy.deepcopy(net)
    for name in Net.registered:
        remove_negative_diagonal(baked, name)
    assert list(baked.state_dict()) == list(plain)


def test_the_plain_state_is_detached_and_of_its_own():
    net = registered_net()
    plain = plain_state_dict(net)
    assert not any(getattr(value, "requires_grad", False) for value in plain.values())
    before = net.first.weight.clone()
    plain["first.weight"].fill_(3.0)
    assert torch.equal(net.first.weight, before)


def test_the_plain_state_of_a_stock_model_is_its_state():
    net = stock_net()
    assert list(plain_state_dict(net)) == list(net.state_dict())


def test_the_plain_state_keeps_shared_modules_under_both_names():
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": layer, "b": layer})
    keys = list(model.state_dict())
    register_negative_diagonal(model, "a.weight")
    assert list(plain_state_dict(model)) == keys


@every_dtype
def test_a_checkpoint_of_another_float_dtype_loads(dtype):
    net = registered_net()
    net.load_state_dict({
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in stock_net().state_dict().items()
    })
    assert net.first.weight.dtype == torch.float32
    assert_same_state(net, stock_net(), rtol=2e-2, atol=1e-3)
    loaded = net.first.parametrizations.weight.original.clone()
    net.first.weight = stock_net().first.weight.to(dtype).float()
    assert_same_bits(net.first.parametrizations.weight.original, loaded)


def test_assigning_keeps_the_dtype_of_the_checkpoint():
    net = registered_net()
    net.load_state_dict(stock_net().double().state_dict(), assign=True)
    assert net.first.weight.dtype == torch.float64
    assert_same_state(net, stock_net(), rtol=1e-6, atol=1e-7)


@every_map
def test_a_model_on_meta_takes_a_checkpoint(map):
    with torch.device("meta"):
        net = Net()
    for name in Net.registered:
        register_negative_diagonal(net, name, map=map)
    assert net.first.weight.is_meta
    net.load_state_dict(stock_net().state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert_same_state(net, stock_net())


@pytest.mark.parametrize("plain", [True, False])
def test_safetensors(plain, tmp_path):
    def tensors(state):
        return {k: v for k, v in state.items() if k != "_extra_state"}

    net, source = registered_net(), registered_net(seed=3)
    state = plain_state_dict(source) if plain else source.state_dict()
    save_file(tensors(state), tmp_path / "state.safetensors")
    result = net.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=False)
    assert result.missing_keys == ["_extra_state"]
    assert not result.unexpected_keys
    net.seen = source.seen
    assert_same_state(net, source)


def test_nothing_stays_behind_after_removal():
    net = registered_net()
    for name in Net.registered:
        remove_negative_diagonal(net, name)
    for module in net.modules():
        assert not module._load_state_dict_pre_hooks
    net.load_state_dict(stock_net().state_dict(), strict=True)
    net.load_state_dict(stock_net().state_dict(), strict=True, assign=True)


def test_a_copy_loads_into_itself():
    net = registered_net()
    replica = copy.deepcopy(net)
    before = plain_state_dict(net)
    replica.load_state_dict(stock_net().state_dict())
    assert_same_state(replica, stock_net())
    assert all(
        torch.equal(v, before[k]) for k, v in plain_state_dict(net).items() if torch.is_tensor(v)
    )


def test_what_inference_mode_has_loaded_or_removed_can_be_trained():
    state = stock_net().state_dict()
    loaded, removed = registered_net(), registered_net()
    with torch.inference_mode():
        loaded.load_state_dict(state, assign=True)
        for name in Net.registered:
            remove_negative_diagonal(removed, name)
    for net in (loaded, removed):
        assert not any(tensor.is_inference() for tensor in net.parameters())


def test_the_plain_state_knows_originals_that_a_wrapper_renames():
    def without_inner(module, state, prefix, metadata):
        for key in list(state):
            state[key.replace("inner.", "")] = state.pop(key)

    wrapper = nn.Module()
    wrapper.inner = register_negative_diagonal(nn.Linear(3, 3))
    wrapper.register_state_dict_post_hook(without_inner)
    assert sorted(plain_state_dict(wrapper)) == ["bias", "weight"]
