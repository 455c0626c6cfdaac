"""Modules and maps as users write them."""

from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import (
    NegativeDiagonal,
    NegSquareDiagonal,
    register_negative_diagonal,
    remove_negative_diagonal,
)


class OwnSquareDiagonal(NegativeDiagonal):
    """A user's map: only the map and its inverse."""

    def map(self, x: Tensor) -> Tensor:
        return -x.square() - 1e-6

    def inverse(self, d: Tensor) -> Tensor:
        return (-d - 1e-6).clamp(min=0).sqrt()


class Raw(nn.Module):
    """Parameters and a buffer of its own, used in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.randn(4, 4))
        self.batch = nn.Parameter(torch.randn(3, 4, 4))
        self.vector = nn.Parameter(torch.randn(4))
        self.register_buffer("constant", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.square + x * self.vector + x @ self.constant
        return (x @ self.batch).sum(0)


class Net(nn.Module):
    """Nested, with registered and other tensors, a buffer, and extra state of its own."""

    registered = ("first.weight", "body.0.weight", "core.weight_hh_l0")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.BatchNorm1d(4))
        self.core = nn.LSTM(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.seen = {"seen": 0}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


class Half(nn.Module):
    """Another parametrization."""

    def forward(self, original: Tensor) -> Tensor:
        return original / 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * 2


def transformer() -> nn.ModuleDict:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.ModuleDict({
        "embedding": nn.Embedding(7, 4),
        "encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        "head": nn.Linear(4, 7),
    })


def linear(diagonal: float = -1.0, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(3, 3, dtype=dtype)
    with torch.no_grad():
        layer.weight.diagonal().fill_(diagonal)
    return layer


def stock_net(seed: int = 0) -> Net:
    """With feasible values, which every map keeps."""
    torch.manual_seed(seed)
    net = Net()
    net.seen = {"seen": seed}
    for name in Net.registered:
        register_negative_diagonal(net, name, map="sign_flip")
        remove_negative_diagonal(net, name)
    return net


def registered_net(map: Any = "exp", seed: int = 1, **options: Any) -> Net:
    net = stock_net(seed)
    for name in Net.registered:
        register_negative_diagonal(net, name, map=map, **options)
    return net


class TwiceSquareDiagonal(NegSquareDiagonal):
    """Made of the map of a ready class."""

    def map(self, x: Tensor) -> Tensor:
        return 2 * super().map(x)

    def inverse(self, d: Tensor) -> Tensor:
        return super().inverse(d / 2)


class LearnedScale(NegativeDiagonal):
    """A user's map with a parameter and a buffer of its own."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("unit", torch.tensor(2.0))

    def map(self, x: Tensor) -> Tensor:
        return -x.exp() * self.scale.exp() * self.unit

    def inverse(self, d: Tensor) -> Tensor:
        return (-d / self.scale.exp() / self.unit).log()


def stock() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


class Transparent(nn.Module):
    """A wrapper as people write one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)
