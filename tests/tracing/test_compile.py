"""Compiled layers equal eager ones, in one graph."""

from typing import Any

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import diagonal_of, first, original_of, registered, sample
from tests.support.tables import LAYERS, Layer, every_layer, every_map

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def assert_compiled_as_eager(layer: Layer, map: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = register_negative_diagonal(layer.make().to(dtype), map=map, **layer.options)
    expected = layer.run(module)
    expected.float().square().sum().backward()
    grads = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    found = layer.run(compiled)
    torch.testing.assert_close(found, expected)
    found.float().square().sum().backward()
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


@every_layer("linear", "conv2d_groups", "conv2d_center", "transposed1d")
def test_compiled_layers_equal_eager_ones_without_graph_breaks(layer):
    assert_compiled_as_eager(layer, "exp", torch.float32)


@every_map
def test_compiled_layers_equal_eager_ones_in_low_precision(map):
    assert_compiled_as_eager(LAYERS["linear"], map, torch.bfloat16)


@every_layer("linear", "conv2d_groups", "lstm")
def test_compiled_in_one_graph_it_trains_as_before(layer):
    module, x = registered(layer, "exp"), sample(layer)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=layer is not LAYERS["lstm"])
    torch.testing.assert_close(first(compiled(x)), first(module(x)))
    grads = []
    for run in (module, compiled):
        module.zero_grad()
        first(run(x)).square().sum().backward()
        grads.append(original_of(layer, module).grad)
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        original_of(layer, module).add_(2.0)
    torch.testing.assert_close(first(compiled(x)), first(module(x)))
    assert (diagonal_of(layer, module) < 0).all()


def test_no_graph_breaks_through_inductor():
    layer = register_negative_diagonal(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    explanation = torch._dynamo.explain(layer)(x)
    assert explanation.graph_break_count == 0
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert (layer.parametrizations.weight.original.grad.diagonal() != 0).all()
