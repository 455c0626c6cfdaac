"""Checkpoints from before registration, and for after removal."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_same_bits, assert_same_state
from tests.support.modules import registered_net, stock_net
from tests.support.tables import every_dtype, every_map


@pytest.mark.parametrize("assign", [False, True])
@every_map
def test_a_plain_checkpoint_loads_and_stays_as_it_is(map, assign):
    net, state = registered_net(map), stock_net().state_dict()
    keys = list(state)
    net.load_state_dict(state, strict=True, assign=assign)
    assert list(state) == keys
    assert_same_state(net, stock_net())


@every_map
def test_the_plain_state_is_that_of_the_stock_model(map):
    net = registered_net(map)
    plain, expected = plain_state_dict(net), stock_net().state_dict()
    assert list(plain) == list(expected) == list(plain_state_dict(stock_net()))
    assert plain._metadata == expected._metadata
    other = stock_net(5)
    other.load_state_dict(plain, strict=True)
    assert_same_state(net, other)


def test_the_plain_state_is_detached_and_of_its_own():
    net = registered_net()
    plain = plain_state_dict(net)
    assert not any(getattr(value, "requires_grad", False) for value in plain.values())
    before = net.first.weight.clone()
    plain["first.weight"].fill_(3.0)
    assert torch.equal(net.first.weight, before)


def test_the_plain_state_keeps_what_is_beside_ours_and_the_order_of_modules():
    layer = nn.Linear(3, 3)
    shared = nn.ModuleDict({"a": layer, "b": layer})
    neighbour = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_ih_l0")
    own = nn.Sequential(nn.Linear(3, 3))
    own.weight = nn.Parameter(torch.ones(3, 3))
    for model, name in ((shared, "a.weight"), (neighbour, "weight_hh_l0"), (own, "*weight")):
        keys = [*model.state_dict()]
        found = [*plain_state_dict(register_negative_diagonal(model, name))]
        assert found == keys or model is neighbour
        assert sorted(found) == sorted(keys)


def test_the_plain_state_knows_originals_that_a_wrapper_renames():
    def without_inner(module, state, prefix, metadata):
        for key in list(state):
            state[key.replace("inner.", "")] = state.pop(key)

    wrapper = nn.Module()
    wrapper.inner = register_negative_diagonal(nn.Linear(3, 3))
    wrapper.register_state_dict_post_hook(without_inner)
    assert sorted(plain_state_dict(wrapper)) == ["bias", "weight"]


@every_dtype
def test_a_checkpoint_of_another_float_dtype_loads(dtype):
    net, state = registered_net(), stock_net().to(dtype).state_dict()
    net.load_state_dict(state)
    assert net.first.weight.dtype == torch.float32
    assert_same_state(net, stock_net(), rtol=2e-2, atol=1e-3)
    loaded = net.first.parametrizations.weight.original.clone()
    net.first.weight = stock_net().first.weight.to(dtype).float()
    assert_same_bits(net.first.parametrizations.weight.original, loaded)
    net.load_state_dict(state, assign=True)
    assert net.first.weight.dtype == dtype
    assert_same_state(net.float(), stock_net(), rtol=2e-2, atol=1e-3)


def test_keys_may_be_mixed_and_registered_ones_win_over_plain_ones_that_are_unexpected_then():
    net, source = registered_net(), registered_net(seed=3)
    state, plain = source.state_dict(), plain_state_dict(source)
    mixed = {key: value for key, value in state.items() if "first" not in key}
    net.load_state_dict(mixed | {k: v for k, v in plain.items() if "first" in k}, strict=True)
    assert_same_state(net, source)
    net, state["first.weight"] = registered_net(), torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.weight"):
        copy.deepcopy(net).load_state_dict(state, strict=True)
    result = net.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["first.weight"]
    assert_same_state(net, source)


def test_a_missing_weight_is_missing():
    net, state = registered_net(), stock_net().state_dict()
    before = net.first.weight.clone()
    del state["first.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.parametrizations"):
        net.load_state_dict(state)
    result = net.load_state_dict(state, strict=False)
    assert "first.parametrizations.weight.original" in result.missing_keys
    assert torch.equal(net.first.weight, before)


def test_a_checkpoint_without_the_mark_loads():
    net, source = registered_net(), registered_net(seed=3)
    state = {k: v for k, v in source.state_dict().items() if "0._extra_state" not in k}
    with pytest.warns(UserWarning, match=r"expected a checkpoint that says which map.*NegExp"):
        net.load_state_dict(state, strict=True)
    assert_same_state(net, source)


def test_a_plain_key_after_a_tensor_with_two_parametrizations_is_read():
    rnn = register_negative_diagonal(nn.RNN(3, 3, num_layers=2), "weight_hh_l*")
    parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Identity())
    plain = 2 * rnn.weight_hh_l1.detach()
    state = {key: value for key, value in rnn.state_dict().items() if "weight_hh_l1" not in key}
    rnn.load_state_dict(state | {"weight_hh_l1": plain}, strict=True)
    torch.testing.assert_close(rnn.weight_hh_l1.detach(), plain)


@pytest.mark.parametrize("via", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_buffer_that_stays_out_of_checkpoints_stays_out_of_them(via: Callable):
    def made(persistent: bool) -> nn.Module:
        module = nn.Linear(3, 1)
        module.register_buffer("matrix", torch.randn(3, 3), persistent=persistent)
        return module

    found = via(register_negative_diagonal(made(False), "matrix", map="softplus"))
    assert list(found.state_dict()) == list(plain_state_dict(found)) == ["weight", "bias"]
    before = found.matrix.clone()
    for source in (copy.deepcopy(found), made(False)):
        found.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(found.matrix, before)
    remove_negative_diagonal(found, "matrix")
    assert list(found.state_dict()) == ["weight", "bias"]
    assert torch.equal(found.matrix, before)
    persistent = register_negative_diagonal(made(True), "matrix")
    assert "matrix" in plain_state_dict(persistent)
    assert "parametrizations.matrix.original" in persistent.state_dict()
