"""Assigning sets the weight, or refuses and changes nothing."""

import math

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_only_diagonal_differs, assert_same_bits, registered
from tests.support.modules import linear
from tests.support.tables import every_layer_once_every_map_somewhere


@every_layer_once_every_map_somewhere()
def test_assignment_sets_the_weight(layer, map):
    module = registered(layer, map)
    old = getattr(module, layer.tensor_name).detach()
    value = torch.randn(old.shape)
    layer.diagonal(value).copy_(-torch.rand_like(layer.diagonal(value)) - 0.1)
    strides = module.parametrizations[layer.tensor_name].original.stride()
    transposed = value.movedim(0, -1).contiguous().movedim(-1, 0)
    setattr(module, layer.tensor_name, transposed)
    weight = getattr(module, layer.tensor_name)
    torch.testing.assert_close(weight, value)
    assert_only_diagonal_differs(weight, value, layer.diagonal)
    assert weight.stride() == strides
    value.fill_(7.0)
    assert not (getattr(module, layer.tensor_name) == 7.0).any()
    setattr(module, layer.tensor_name, weight)
    torch.testing.assert_close(getattr(module, layer.tensor_name), weight, rtol=1e-6, atol=0)
    setattr(module, layer.tensor_name, nn.Parameter(weight.detach() * 1.5))
    torch.testing.assert_close(getattr(module, layer.tensor_name), weight * 1.5)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            -torch.ones(3, 2),
            ValueError,
            r"expected .* \(3, 3\), torch.float32 on cpu, got .*\(3, 2\)",
        ),
        (-torch.ones(3, 3, dtype=torch.float64), ValueError, "got .* torch.float64"),
        (-torch.ones(3, 3, device="meta"), ValueError, "on cpu, got .* on meta"),
        (-torch.ones(3, 3, dtype=torch.int64), ValueError, "got .* torch.int64"),
        (torch.full((3, 3), math.nan), ValueError, "weight: expected a finite diagonal"),
        (torch.full((3, 3), -math.inf), ValueError, "weight: expected a finite diagonal"),
        ([[1.0]], TypeError, "weight: expected a tensor, got list"),
        (None, TypeError, "weight: expected a tensor, got NoneType"),
    ],
    ids=str,
)
def test_a_refused_assignment_says_why_and_changes_nothing(value, error, message):
    layer = register_negative_diagonal(linear())
    original = layer.parametrizations.weight.original
    before, place = original.detach().clone(), original.data_ptr()
    with pytest.raises(error, match=message):
        layer.weight = value
    assert_same_bits(original, before)
    assert original.data_ptr() == place
