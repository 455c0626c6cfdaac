"""What ``negative_diagonals`` yields."""

import pytest
import torch
from torch import nn

from negdiag_param import init_, negative_diagonals, register_negative_diagonal
from tests.support.asserts import diagonal_of, registered
from tests.support.modules import transformer
from tests.support.tables import every_built_in, every_layer_once_every_map_somewhere


@every_layer_once_every_map_somewhere()
def test_the_diagonals_are_those_of_the_weight(map, layer):
    module = registered(layer, map, margin=0.1)
    ((found, diagonal),) = negative_diagonals(module)
    assert found == layer.tensor_name
    expected = diagonal_of(layer, module)
    assert diagonal.numel() == expected.numel()
    torch.testing.assert_close(diagonal.reshape(-1).sort()[0], expected.reshape(-1).sort()[0])


@every_built_in
def test_the_diagonals_are_differentiable(map):
    model = register_negative_diagonal(transformer(), "*.linear?.weight", map=map)
    sum(diagonal.square().sum() for _, diagonal in negative_diagonals(model)).backward()
    for layer in model["encoder"].layers:
        original = layer.linear1.parametrizations.weight.original
        found, original.grad = original.grad, None
        layer.linear1.weight.diagonal().square().sum().backward()
        torch.testing.assert_close(found, original.grad)


def test_a_stock_model_has_no_diagonals():
    assert list(negative_diagonals(transformer())) == []


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_lost_its_memory_is_refused(size):
    layer = register_negative_diagonal(nn.Linear(size, size))
    layer.parametrizations.weight.original.untyped_storage().resize_(0)
    reads = (lambda: dict(negative_diagonals(layer)), lambda: init_(layer, "weight", nn.init.ones_))
    for read in reads:
        with pytest.raises(ValueError, match=r"weight: expected a tensor of 2 .* got what is left"):
            read()
