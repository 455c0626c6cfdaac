"""The tables every property is tested over: a new row here gets every test for free."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, SoftplusTransform

from negdiag_param import (
    ClampDiagonal,
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    NegSquareDiagonal,
    SignFlipDiagonal,
)
from tests.support.modules import OwnSquareDiagonal, Raw


def neg_softplus_transform() -> ComposeTransform:
    return ComposeTransform([SoftplusTransform(), AffineTransform(0.0, -1.0)])


BUILT_IN: dict[str, type[NegativeDiagonal]] = {
    "clamp": ClampDiagonal,
    "exp": NegExpDiagonal,
    "softplus": NegSoftplusDiagonal,
    "square": NegSquareDiagonal,
    "sign_flip": SignFlipDiagonal,
}
# The same, and with a constant of their own.
VARIANTS: dict[str, Callable[..., NegativeDiagonal]] = {
    **BUILT_IN,
    "softplus_beta": partial(NegSoftplusDiagonal, beta=10.0),
}
CLASSES: dict[str, type[NegativeDiagonal]] = {**BUILT_IN, "subclass": OwnSquareDiagonal}
MAKERS: dict[str, Callable[..., NegativeDiagonal]] = VARIANTS | CLASSES
NAMED: dict[str, Any] = {name: name for name in BUILT_IN}
MAPS: dict[str, Any] = NAMED | {
    "subclass": OwnSquareDiagonal,
    "transform": neg_softplus_transform(),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MARGINS = [0.0, 0.1, 1.7]


def smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of ``dtype``."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def extremes(dtype: torch.dtype) -> Tensor:
    """Originals at which some map could round to zero, overflow, or lose its slope."""
    info = torch.finfo(dtype)
    sizes = [0.0, smallest(dtype), info.tiny, 1e-3, 0.1, 1.0, 1.7, 9.0, 11.0, 40.0, 88.7, 103.9]
    sizes += [709.7, info.max**0.5, info.max / 2, info.max]
    return torch.tensor([sign * size for size in sizes for sign in (1, -1)], dtype=dtype)


def originals(dtype: torch.dtype) -> Tensor:
    """Every finite number of 16 bits; of more bits the extremes, and a sample of every size."""
    if dtype.itemsize == 2:
        found = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        return found[found.isfinite()]
    torch.manual_seed(0)
    normal = torch.randn(5_000, dtype=dtype)
    tiny = normal.sign() * torch.empty_like(normal).uniform_(-60, 6).exp()
    wide = torch.empty_like(normal).uniform_(-90, 90)
    return torch.cat([extremes(dtype), 4 * normal, 1e-3 * normal, tiny, wide])


def with_diagonal(values: Tensor) -> Tensor:
    torch.manual_seed(0)
    n = len(values)
    original = torch.randn(n, n, dtype=torch.float64).to(values.dtype)
    original[0, 1], original[1, 0] = torch.finfo(values.dtype).max, -0.0
    original.diagonal().copy_(values)
    return original


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
    "gru_reverse": Layer(
        lambda: nn.GRU(3, 4, bidirectional=True), grouped(3), (2, 1, 3), "weight_hh_l0_reverse"
    ),
    "gru": Layer(lambda: nn.GRU(3, 4, 2), grouped(3), (2, 1, 3), "weight_hh_l1"),
    "lstm": Layer(lambda: nn.LSTM(3, 4), grouped(4), (2, 1, 3), "weight_hh_l0"),
    "lstm_projected": Layer(
        lambda: nn.LSTM(3, 4, proj_size=2), grouped(4), (2, 1, 3), "weight_hh_l0"
    ),
    "rnn_cell": Layer(lambda: nn.RNNCell(3, 4), matrix, (2, 3), "weight_hh"),
    "gru_cell": Layer(lambda: nn.GRUCell(3, 4), grouped(3), (2, 3), "weight_hh"),
    "lstm_cell": Layer(lambda: nn.LSTMCell(3, 4), grouped(4), (2, 3), "weight_hh"),
    "raw": Layer(Raw, matrix, (2, 4), "square"),
    "raw_batch": Layer(
        Raw, lambda weight: weight.diagonal(0, 1, 2), (2, 4), "batch", {"dims": (-2, -1)}
    ),
    "raw_vector": Layer(Raw, lambda weight: weight, (2, 4), "vector"),
    "raw_all": Layer(Raw, lambda weight: weight, (2, 4), "square", {"dims": ()}),
    "raw_buffer": Layer(Raw, matrix, (2, 4), "constant"),
}


def rows(table: Mapping[str, Any], names: Iterable[str] | None = None) -> list[Any]:
    return [pytest.param(table[name], id=name) for name in (table if names is None else names)]


every_map = pytest.mark.parametrize("map", rows(MAPS))
every_built_in = pytest.mark.parametrize("map", BUILT_IN)
every_variant = pytest.mark.parametrize("name", VARIANTS)
every_maker = pytest.mark.parametrize("name", MAKERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
every_margin = pytest.mark.parametrize("margin", MARGINS)
LEADING = "clamp"  # the map that meets every layer
ALL_MAPS_ON = ("linear", "conv2d_groups", "lstm")  # the layers that meet every map


def every_layer(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layer", rows(LAYERS, names or None))


def every_layer_once_every_map_somewhere(
    *names: str, maps: Mapping[str, Any] = MAPS, somewhere: tuple[str, ...] = ALL_MAPS_ON
) -> pytest.MarkDecorator:
    """For properties in which the layer and the map play no part together."""
    pairs = [(name, LEADING) for name in names or LAYERS]
    pairs += [(name, kind) for kind in maps if kind != LEADING for name in somewhere]
    return pytest.mark.parametrize(
        ("layer", "map"),
        [pytest.param(LAYERS[name], maps[kind], id=f"{name}-{kind}") for name, kind in pairs],
    )
