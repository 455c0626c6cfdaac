"""Modules that are neither matrices nor convolutions must say where their matrices are."""

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import baked


def test_bilinear_needs_dims():
    layer = nn.Bilinear(4, 5, 3)
    with pytest.raises(ValueError, match="dims"):
        register_negative_diagonal(layer)
    register_negative_diagonal(layer, dims=(-2, -1))
    assert (layer.weight.diagonal(dim1=1, dim2=2) < 0).all()
    x, y = torch.randn(2, 4), torch.randn(2, 5)
    torch.testing.assert_close(layer(x, y), baked(layer)(x, y))
    layer(x, y).sum().backward()
    assert layer.parametrizations.weight.original.grad.count_nonzero() == layer.weight.numel()


@pytest.mark.parametrize("batch", [(2,), (2, 3)])
def test_batches_of_matrices(batch):
    module = nn.Module()
    module.matrices = nn.Parameter(torch.randn(*batch, 4, 5))
    register_negative_diagonal(module, "matrices", dims=(-2, -1), margin=0.1)
    diagonal = module.matrices.diagonal(dim1=-2, dim2=-1)
    assert diagonal.shape == (*batch, 4)
    assert (diagonal <= -0.1).all()
