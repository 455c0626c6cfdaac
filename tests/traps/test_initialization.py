"""Traps of initializing a parametrized weight: what is written reaches nobody."""

import torch
from torch import nn

from negdiag_param import init_, register_negative_diagonal
from tests.traps.naive import feasible, naive, negative


def test_in_place_initialization_is_ignored():
    """Trap: ``nn.init`` on a parametrized weight fills a tensor that nobody keeps."""
    layer = naive(feasible())
    nn.init.constant_(layer.weight, -3.0)
    assert not (layer.weight == -3).any()
    ours = init_(register_negative_diagonal(feasible()), "weight", nn.init.constant_, -3.0)
    assert ours.weight.allclose(torch.tensor(-3.0))


def test_resetting_is_ignored():
    """Trap: ``reset_parameters`` initializes the bias and leaves the weight."""
    layer, ours = naive(feasible()), register_negative_diagonal(feasible())
    before = layer.weight.clone(), ours.weight.clone()
    for module in (layer, ours):
        module.reset_parameters()
    assert torch.equal(layer.weight, before[0])
    assert not torch.equal(ours.weight, before[1])
    assert negative(ours)


def test_an_emptied_module_stays_uninitialized():
    """Trap: after ``to_empty`` a reset leaves the original as it came from the allocator."""

    def emptied(layer: nn.Module) -> nn.Module:
        layer.to("meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.parametrizations.weight.original.fill_(float("nan"))
        layer.reset_parameters()
        return layer

    assert emptied(naive(feasible())).weight.isnan().all()
    ours = emptied(register_negative_diagonal(feasible()))
    assert ours.weight.isfinite().all()
    assert negative(ours)
