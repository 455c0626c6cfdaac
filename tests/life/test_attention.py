"""Attention and encoder layers use the mapped weights, also on their fast path."""

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal
from tests.support.asserts import baked, push_up
from tests.support.tables import grouped


def test_attention_has_a_diagonal_for_each_of_query_key_and_value():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    register_negative_diagonal(attention, "in_proj_weight", blocks=3)
    register_negative_diagonal(attention, "out_proj.weight")
    x = torch.randn(2, 5, 4)
    attention(x, x, x)[0].square().sum().backward()
    original = attention.parametrizations.in_proj_weight.original
    assert grouped(3)(original.grad)[[0, 2]].count_nonzero() == 8
    assert attention.out_proj.parametrizations.weight.original.grad.diagonal().count_nonzero() == 4
    push_up(attention)
    assert (grouped(3)(attention.in_proj_weight) < 0).all()
    assert (attention.out_proj.weight.diagonal() < 0).all()
    stock = baked(attention)
    for mode in (True, False):
        attention.train(mode)
        stock.train(mode)
        torch.testing.assert_close(attention(x, x, x)[0], stock(x, x, x)[0])
        with torch.no_grad():
            torch.testing.assert_close(attention(x, x, x)[0], stock(x, x, x)[0])


def encoder_layer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    register_negative_diagonal(layer, "linear?.weight")
    register_negative_diagonal(layer, "self_attn.in_proj_weight", blocks=3)
    return register_negative_diagonal(layer, "self_attn.out_proj.weight")


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_uses_the_mapped_weights(training):
    layer = encoder_layer().train(training)
    stock = baked(layer)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(layer(x), stock(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), stock(x))
        layer.linear1.parametrizations.weight.original.diagonal().sub_(1)
        assert not layer(x).allclose(stock(x))


def test_an_encoder_made_of_a_registered_layer_has_independent_copies():
    encoder = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)
    assert len(list(negative_diagonals(encoder))) == 8
    one, other = encoder.layers
    before = other.linear1.weight.clone()
    with torch.no_grad():
        one.linear1.parametrizations.weight.original.sub_(1)
    assert torch.equal(other.linear1.weight, before)
    x = torch.randn(2, 5, 4)
    with nn.utils.parametrize.cached():
        assert not torch.equal(one.linear1.weight, other.linear1.weight)
        encoder(x).square().sum().backward()
    for layer in encoder.layers:
        assert layer.linear1.parametrizations.weight.original.grad is not None
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), baked(encoder)(x))
