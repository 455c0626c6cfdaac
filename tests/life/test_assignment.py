"""Assigning sets the weight, or refuses and changes nothing."""

import torch
from torch import nn

from tests.support.asserts import assert_only_diagonal_differs, registered
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
