"""Checkpoints with keys of both kinds, or with keys missing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.support.asserts import assert_same_state
from tests.support.modules import registered_net, stock_net


def test_keys_may_be_mixed():
    net, source = registered_net(), registered_net(seed=3)
    state = source.state_dict()
    plain = plain_state_dict(source)
    for key in [k for k in state if "first" in k]:
        del state[key]
    state.update({k: v for k, v in plain.items() if k.startswith("first")})
    net.load_state_dict(state, strict=True)
    assert_same_state(net, source)


def test_registered_keys_win_over_plain_ones_that_are_unexpected_then():
    net, source = registered_net(), registered_net(seed=3)
    state = source.state_dict()
    state["first.weight"] = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.weight"):
        copy.deepcopy(net).load_state_dict(state, strict=True)
    result = net.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["first.weight"]
    assert_same_state(net, source)


@pytest.mark.parametrize("strict", [True, False])
def test_a_missing_weight_is_missing(strict):
    net = registered_net()
    before = net.first.weight.clone()
    state = stock_net().state_dict()
    del state["first.weight"]
    if strict:
        with pytest.raises(RuntimeError, match=r"Missing key.*first\.parametrizations"):
            net.load_state_dict(state)
    else:
        result = net.load_state_dict(state, strict=False)
        assert "first.parametrizations.weight.original" in result.missing_keys
    assert torch.equal(net.first.weight, before)


def test_a_checkpoint_without_the_mark_loads():
    net, source = registered_net(), registered_net(seed=3)
    state = {k: v for k, v in source.state_dict().items() if "0._extra_state" not in k}
    net.load_state_dict(state, strict=True)
    assert_same_state(net, source)


def test_a_plain_key_after_a_tensor_with_two_parametrizations_is_read():
    rnn = register_negative_diagonal(nn.RNN(3, 3, num_layers=2), "weight_hh_l*")
    parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Identity())
    plain = 2 * rnn.weight_hh_l1.detach()
    state = {key: value for key, value in rnn.state_dict().items() if "weight_hh_l1" not in key}
    rnn.load_state_dict(state | {"weight_hh_l1": plain}, strict=True)
    torch.testing.assert_close(rnn.weight_hh_l1.detach(), plain)
