"""Recurrent layers: every gate has its own diagonal."""

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal
from tests.support.asserts import baked, first, push_up
from tests.support.tables import grouped

RECURRENT = {
    "rnn": (nn.RNN, 1),
    "gru": (nn.GRU, 3),
    "lstm": (nn.LSTM, 4),
    "rnn_cell": (nn.RNNCell, 1),
    "gru_cell": (nn.GRUCell, 3),
    "lstm_cell": (nn.LSTMCell, 4),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_every_gate_has_a_negative_diagonal(kind):
    cls, blocks = RECURRENT[kind]
    cell = kind.endswith("cell")
    layer = cls(3, 4) if cell else cls(3, 4, num_layers=2, bidirectional=True)
    register_negative_diagonal(layer, "weight_hh*")
    found = list(negative_diagonals(layer))
    assert len(found) == (1 if cell else 4)
    x = torch.randn(2, 3) if cell else torch.randn(5, 2, 3)
    push_up(layer)
    for name, _ in found:
        assert (grouped(blocks)(getattr(layer, name)) < 0).all()
    torch.testing.assert_close(first(layer(x)), first(baked(layer)(x)))
    # A cell starts from zeros, where its weights have no gradients: take two steps.
    state = layer(x)
    output = first(layer(x, state)) if cell else first(state)
    output.square().sum().backward()
    for name, _ in found:
        assert (grouped(blocks)(layer.parametrizations[name].original.grad) != 0).all()


def test_packed_sequences():
    layer = register_negative_diagonal(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    found = layer(packed)[0].data
    torch.testing.assert_close(found, baked(layer)(packed)[0].data)
