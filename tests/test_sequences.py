"""Recurrent layers, attention, and modules with parameters of their own."""

import copy

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal, remove_negative_diagonal
from tests.cases import BUILT_IN, MAPS, Raw

RECURRENT = {
    "rnn": (nn.RNN, 1),
    "gru": (nn.GRU, 3),
    "lstm": (nn.LSTM, 4),
    "rnn_cell": (nn.RNNCell, 1),
    "gru_cell": (nn.GRUCell, 3),
    "lstm_cell": (nn.LSTMCell, 4),
}


def gates(weight: torch.Tensor, blocks: int) -> torch.Tensor:
    return weight.view(blocks, -1, weight.shape[-1]).diagonal(dim1=1, dim2=2)


def first(output):
    while isinstance(output, tuple):
        output = output[0]
    return output


def baked(model: nn.Module) -> nn.Module:
    return remove_negative_diagonal(copy.deepcopy(model), "*")


def push_up(model: nn.Module, steps: int = 5) -> None:
    """Trains every diagonal toward positive values."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((diagonal - 1).square().sum() for _, diagonal in negative_diagonals(model)).backward()
        optimizer.step()


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_every_gate_has_a_negative_diagonal(kind, map):
    cls, blocks = RECURRENT[kind]
    cell = kind.endswith("cell")
    layer = cls(3, 4) if cell else cls(3, 4, num_layers=2, bidirectional=True)
    register_negative_diagonal(layer, "weight_hh*", map=MAPS[map])
    found = list(negative_diagonals(layer))
    assert len(found) == (1 if cell else 4)
    x = torch.randn(2, 3) if cell else torch.randn(5, 2, 3)
    push_up(layer)
    for name, _ in found:
        assert (gates(getattr(layer, name), blocks) < 0).all()
    torch.testing.assert_close(first(layer(x)), first(baked(layer)(x)))
    # A cell starts from zeros, where its weights have no gradients: take two steps.
    state = layer(x)
    output = first(layer(x, state)) if cell else first(state)
    output.square().sum().backward()
    for name, _ in found:
        assert (gates(layer.parametrizations[name].original.grad, blocks) != 0).all()


@pytest.mark.parametrize("map", BUILT_IN)
def test_attention_has_a_diagonal_for_each_of_query_key_and_value(map):
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    register_negative_diagonal(attention, "in_proj_weight", map=map, blocks=3)
    register_negative_diagonal(attention, "out_proj.weight", map=map)
    x = torch.randn(2, 5, 4)
    attention(x, x, x)[0].square().sum().backward()
    original = attention.parametrizations.in_proj_weight.original
    assert gates(original.grad, 3)[[0, 2]].count_nonzero() == 8
    assert attention.out_proj.parametrizations.weight.original.grad.diagonal().count_nonzero() == 4
    push_up(attention)
    assert (gates(attention.in_proj_weight, 3) < 0).all()
    assert (attention.out_proj.weight.diagonal() < 0).all()
    stock = baked(attention)
    for mode in (True, False):
        attention.train(mode)
        stock.train(mode)
        torch.testing.assert_close(attention(x, x, x)[0], stock(x, x, x)[0])
        with torch.no_grad():
            torch.testing.assert_close(attention(x, x, x)[0], stock(x, x, x)[0])


def encoder_layer(map="exp") -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    register_negative_diagonal(layer, "linear?.weight", map=map)
    register_negative_diagonal(layer, "self_attn.in_proj_weight", map=map, blocks=3)
    return register_negative_diagonal(layer, "self_attn.out_proj.weight", map=map)


@pytest.mark.parametrize("map", BUILT_IN)
@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_uses_the_mapped_weights(training, map):
    layer = encoder_layer(map).train(training)
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


@pytest.mark.parametrize("map", MAPS)
def test_bilinear_needs_dims(map):
    layer = nn.Bilinear(4, 5, 3)
    with pytest.raises(ValueError, match="dims"):
        register_negative_diagonal(layer, map=MAPS[map])
    register_negative_diagonal(layer, map=MAPS[map], dims=(-2, -1))
    assert (layer.weight.diagonal(dim1=1, dim2=2) < 0).all()
    x, y = torch.randn(2, 4), torch.randn(2, 5)
    torch.testing.assert_close(layer(x, y), baked(layer)(x, y))
    layer(x, y).sum().backward()
    assert layer.parametrizations.weight.original.grad.count_nonzero() == layer.weight.numel()


@pytest.mark.parametrize("map", MAPS)
def test_raw_tensors_of_every_kind_together(map):
    module = Raw()
    stock = copy.deepcopy(module)
    register_negative_diagonal(module, "square", map=MAPS[map])
    register_negative_diagonal(module, "batch", map=MAPS[map], dims=(-2, -1))
    register_negative_diagonal(module, "vector", map=MAPS[map])
    register_negative_diagonal(module, "constant", map=MAPS[map])
    assert [name for name, _ in negative_diagonals(module)] == list(module.parametrizations)
    assert all((diagonal < 0).all() for _, diagonal in negative_diagonals(module))
    assert not isinstance(module.parametrizations.constant.original, nn.Parameter)
    x = torch.randn(2, 4)
    expected = module(x)
    for name in ("constant", "vector", "batch", "square"):
        remove_negative_diagonal(module, name)
    assert type(module) is Raw
    assert list(module.state_dict()) == list(stock.state_dict())
    assert not isinstance(module.constant, nn.Parameter)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("batch", [(2,), (2, 3)])
@pytest.mark.parametrize("map", MAPS)
def test_batches_of_matrices(batch, map):
    module = nn.Module()
    module.matrices = nn.Parameter(torch.randn(*batch, 4, 5))
    register_negative_diagonal(module, "matrices", map=MAPS[map], dims=(-2, -1), margin=0.1)
    diagonal = module.matrices.diagonal(dim1=-2, dim2=-1)
    assert diagonal.shape == (*batch, 4)
    assert (diagonal <= -0.1).all()


def test_packed_sequences():
    layer = register_negative_diagonal(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    found = layer(packed)[0].data
    torch.testing.assert_close(found, baked(layer)(packed)[0].data)
