"""The tables every property is tested over: a new row here gets every test for free."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, SoftplusTransform

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    SignFlipDiagonal,
)


class NegSquareDiagonal(NegativeDiagonal):
    """A user's map: only the map and its inverse."""

    def map(self, x: Tensor) -> Tensor:
        return -x.square() - 1e-6

    def inverse(self, d: Tensor) -> Tensor:
        return (-d - 1e-6).clamp(min=0).sqrt()


def neg_softplus_transform() -> ComposeTransform:
    return ComposeTransform([SoftplusTransform(), AffineTransform(0.0, -1.0)])


BUILT_IN: dict[str, type[NegativeDiagonal]] = {
    "exp": NegExpDiagonal,
    "softplus": NegSoftplusDiagonal,
    "sign_flip": SignFlipDiagonal,
}
MAPS: dict[str, Any] = {name: name for name in BUILT_IN} | {
    "subclass": NegSquareDiagonal,
    "transform": neg_softplus_transform(),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MARGINS = [0.0, 0.1, 1.7]


@dataclass(frozen=True)
class Layer:
    """A module with a tensor to register, and an independent account of where its diagonal is."""

    make: Callable[[], nn.Module]
    diagonal: Callable[[Tensor], Tensor]
    input_shape: tuple[int, ...]
    tensor_name: str = "weight"
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, module: nn.Module) -> Tensor:
        parameter = next(module.parameters())
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.input_shape, generator=generator).to(parameter.dtype)
        output = module(x)
        return output[0] if isinstance(output, tuple) else output


def grouped(groups: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.unflatten(0, (groups, -1)).diagonal(dim1=1, dim2=2)


def matrix(weight: Tensor) -> Tensor:
    return weight.diagonal()


class Raw(nn.Module):
    """A user's module with parameters and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.randn(4, 4))
        self.batch = nn.Parameter(torch.randn(3, 4, 4))
        self.vector = nn.Parameter(torch.randn(4))
        self.register_buffer("constant", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.square + x * self.vector + x @ self.constant
        return (x @ self.batch).sum(0)


LAYERS: dict[str, Layer] = {
    "linear": Layer(lambda: nn.Linear(4, 4), matrix, (2, 4)),
    "linear_wide": Layer(lambda: nn.Linear(5, 3), matrix, (2, 5)),
    "linear_tall": Layer(lambda: nn.Linear(3, 5, bias=False), matrix, (2, 3)),
    "conv1d": Layer(lambda: nn.Conv1d(3, 3, 3), grouped(1), (1, 3, 6)),
    "conv2d_groups": Layer(lambda: nn.Conv2d(4, 6, 3, groups=2), grouped(2), (1, 4, 5, 5)),
    "conv2d_depthwise": Layer(lambda: nn.Conv2d(3, 6, 2, groups=3), grouped(3), (1, 3, 5, 5)),
    "conv2d_center": Layer(
        lambda: nn.Conv2d(4, 4, (3, 2), groups=2, padding="same"),
        lambda weight: grouped(2)(weight)[:, 1, 0],
        (1, 4, 5, 5),
        options={"taps": "center"},
    ),
    "conv3d": Layer(lambda: nn.Conv3d(2, 3, 2), grouped(1), (1, 2, 3, 3, 3)),
    "transposed1d": Layer(lambda: nn.ConvTranspose1d(4, 4, 3, groups=2), grouped(2), (1, 4, 5)),
    "transposed2d": Layer(lambda: nn.ConvTranspose2d(2, 3, 2), grouped(1), (1, 2, 4, 4)),
    "transposed3d": Layer(lambda: nn.ConvTranspose3d(2, 2, 2), grouped(1), (1, 2, 3, 3, 3)),
    "rnn": Layer(lambda: nn.RNN(3, 4), matrix, (2, 1, 3), "weight_hh_l0"),
    "gru": Layer(lambda: nn.GRU(3, 4, 2), grouped(3), (2, 1, 3), "weight_hh_l1"),
    "lstm": Layer(lambda: nn.LSTM(3, 4), grouped(4), (2, 1, 3), "weight_hh_l0"),
    "lstm_projected": Layer(
        lambda: nn.LSTM(3, 4, proj_size=2), grouped(4), (2, 1, 3), "weight_hh_l0"
    ),
    "gru_cell": Layer(lambda: nn.GRUCell(3, 4), grouped(3), (2, 3), "weight_hh"),
    "lstm_cell": Layer(lambda: nn.LSTMCell(3, 4), grouped(4), (2, 3), "weight_hh"),
    "raw": Layer(Raw, matrix, (2, 4), "square"),
    "raw_batch": Layer(
        Raw,
        lambda weight: weight.diagonal(dim1=1, dim2=2),
        (2, 4),
        "batch",
        {"dims": (-2, -1)},
    ),
    "raw_vector": Layer(Raw, lambda weight: weight, (2, 4), "vector"),
    "raw_all": Layer(Raw, lambda weight: weight, (2, 4), "square", {"dims": ()}),
    "raw_buffer": Layer(Raw, matrix, (2, 4), "constant"),
}
