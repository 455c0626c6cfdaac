"""A parametrization as one writes it first, and what people do with it."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Naive(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-original.diagonal().exp())
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        original = weight.clone()
        original.diagonal().copy_(weight.diagonal().neg().log())
        return original


class NaiveSoftplus(Naive):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-nn.functional.softplus(original.diagonal()))
        return weight


class NaiveFlip(Naive):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-original.diagonal().abs())
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def naive(
    module: nn.Module, parametrization: type[nn.Module] = Naive, name: str = "weight"
) -> nn.Module:
    parametrize.register_parametrization(module, name, parametrization())
    return module


def feasible(size: int = 4) -> nn.Linear:
    """A layer whose diagonal is negative already, so that the naive ``log`` survives it."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    with torch.no_grad():
        layer.weight.diagonal().abs_().neg_()
    return layer


def negative(layer: nn.Module) -> bool:
    return bool((layer.weight.diagonal() < 0).all())
