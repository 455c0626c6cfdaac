"""Taps and groups of convolutions."""

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative, assert_only_diagonal_differs


def as_matrix(conv: nn.Module, channels: int, size: tuple[int, ...]) -> Tensor:
    """The linear map of a convolution without bias, one column per input entry."""
    n = channels * torch.Size(size).numel()
    return conv(torch.eye(n).view(n, channels, *size)).flatten(1).T


CENTERED = {
    "odd": lambda: nn.Conv1d(3, 3, 5, padding=2, bias=False),
    "even": lambda: nn.Conv1d(3, 3, 4, padding="same", bias=False),
    "dilated": lambda: nn.Conv1d(2, 2, 3, padding=2, dilation=2, bias=False),
    "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(3, 3, (3, 2), padding="same", groups=3, bias=False),
    "volume": lambda: nn.Conv3d(2, 2, (1, 3, 2), padding="same", bias=False),
    "transposed": lambda: nn.ConvTranspose1d(4, 4, 3, padding=1, groups=2, bias=False),
    "transposed_dilated": lambda: nn.ConvTranspose2d(2, 2, 3, padding=2, dilation=2, bias=False),
}


@pytest.mark.parametrize("name", CENTERED)
def test_center_taps_are_the_main_diagonal_of_the_convolution(name):
    torch.manual_seed(0)
    conv = CENTERED[name]()
    size = (4,) * (conv.weight.ndim - 2)
    before = as_matrix(conv, conv.in_channels, size).detach()
    register_negative_diagonal(conv, taps="center")
    after = as_matrix(conv, conv.in_channels, size)
    assert_negative(after.diagonal())
    torch.testing.assert_close(
        after - torch.diag(after.diagonal()), before - torch.diag(before.diagonal())
    )


def test_a_laplacian_stencil_stays_representable():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    register_negative_diagonal(conv, taps="center")
    stencil = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    conv.weight = stencil
    torch.testing.assert_close(conv.weight.detach(), stencil)


def test_groups_are_inferred_only_where_they_fit():
    conv = nn.Conv2d(4, 4, 4, groups=2)
    before = conv.weight.detach().clone()
    register_negative_diagonal(conv, dims=(2, 3))
    assert_negative(conv.weight.diagonal(dim1=2, dim2=3))
    assert_only_diagonal_differs(conv.weight, before, lambda w: w.diagonal(dim1=2, dim2=3))
    gru = register_negative_diagonal(nn.GRU(3, 9), "weight_hh_l0", dims=(1, 0))
    assert_negative(gru.weight_hh_l0.diagonal())
