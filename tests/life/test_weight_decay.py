"""Where decoupled weight decay, alone, takes a diagonal."""

import math

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal

RESTS = {
    "clamp": lambda margin: -margin,
    "exp": lambda margin: -margin - 1.0,
    "softplus": lambda margin: -margin - math.log(2.0),
    "square": lambda margin: -margin,
    "sign_flip": lambda margin: -2.0 * margin,
}


def decayed(**options: object) -> nn.Linear:
    """Trained by nothing but the decay, until it rests."""
    torch.manual_seed(0)
    layer = register_negative_diagonal(nn.Linear(4, 4), **options)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(400):
        optimizer.zero_grad()
        (0.0 * layer.weight).sum().backward()
        optimizer.step()
    return layer


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("map", RESTS)
def test_decay_pulls_to_the_fixed_point_of_the_map(map, margin):
    diagonal = decayed(map=map, margin=margin).weight.diagonal()
    expected = torch.full((4,), RESTS[map](margin))
    torch.testing.assert_close(diagonal, expected, rtol=1e-5, atol=1e-6)
    assert (diagonal < 0).all()


def test_softplus_with_beta_rests_nearer_to_the_boundary():
    diagonal = decayed(map="softplus", beta=10.0).weight.diagonal()
    torch.testing.assert_close(diagonal, torch.full((4,), -math.log(2.0) / 10))
