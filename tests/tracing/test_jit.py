"""``torch.jit.trace`` and ``torch.fx`` keep the map."""

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import first, original_of, registered, sample, shifted
from tests.support.tables import every_layer_once_every_map_somewhere, every_map

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = (
    "linear",
    "linear_tall",
    "conv2d_groups",
    "conv2d_center",
    "transposed1d",
    "gru",
    "lstm",
    "raw",
    "raw_batch",
    "raw_vector",
)


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_tracing_keeps_the_map(layer, map):
    module, x = registered(layer, map), sample(layer)
    traced = torch.jit.trace(module, (x,), check_trace=False)
    torch.testing.assert_close(first(traced(x)), first(module(x)))
    expected = shifted(layer, module, 2.0)
    with torch.no_grad():
        original_of(layer, module).add_(2.0)
        torch.testing.assert_close(first(traced(x)), expected)


class Custom(nn.Module):
    """Reads a raw registered parameter in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.matrix


@every_map
def test_symbolic_tracing_keeps_the_map(map):
    module = register_negative_diagonal(Custom(), "matrix", map=map)
    register_negative_diagonal(module, "inner.weight", map=map)
    traced = torch.fx.symbolic_trace(module)
    x = torch.randn(2, 4)
    torch.testing.assert_close(traced(x), module(x))
    with torch.no_grad():
        module.parametrizations.matrix.original.add_(2.0)
        module.inner.parametrizations.weight.original.add_(2.0)
    torch.testing.assert_close(traced(x), module(x))
    traced(x).sum().backward()
    assert module.parametrizations.matrix.original.grad.diagonal().count_nonzero() == 4
