"""Exported programs keep the map: another original still comes out negative."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.asserts import first, registered, sample, shifted
from tests.support.modules import Half
from tests.support.tables import Layer, every_layer, every_layer_once_every_map_somewhere

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


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """Older compilers count strict exports among the traces of which there may be so many."""
    torch.compiler.reset()


@lru_cache
def is_taken(kind: type[nn.RNNBase]) -> bool:
    """Whether this PyTorch exports recurrent layers with any parametrization."""
    stock = kind(3, 4)
    parametrize.register_parametrization(stock, "weight_hh_l0", Half())
    try:
        torch.export.export(stock, (torch.ones(2, 1, 3),), strict=False)
    except ValueError:
        return False
    return True


def assert_export_keeps_the_map(layer: Layer, map: Any, strict: bool) -> None:
    module, x = registered(layer, map), sample(layer)
    exported = torch.export.export(module, (x,), strict=strict)
    again = exported.module()
    torch.testing.assert_close(first(again(x)), first(module(x)))
    key = f"parametrizations.{layer.tensor_name}.original"
    assert key in exported.state_dict
    expected = shifted(layer, module, 2.0)
    with torch.no_grad():
        again.get_parameter(key).add_(2.0)
        torch.testing.assert_close(first(again(x)), expected)


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_export_keeps_the_map(layer, map):
    kind = type(layer.make())
    if issubclass(kind, nn.RNNBase) and not is_taken(kind):
        pytest.skip(f"this PyTorch exports no parametrized {kind.__name__}, except strictly")
    assert_export_keeps_the_map(layer, map, strict=False)


@pytest.mark.slow
@every_layer(*(name for name in NAMES if name not in ("gru", "lstm")))
def test_strict_export_keeps_the_map(layer):
    assert_export_keeps_the_map(layer, "exp", strict=True)


def test_export_does_not_leave_the_module_changed():
    module = register_negative_diagonal(nn.Linear(4, 4))
    torch.export.export(module, (torch.eye(4),))
    module(torch.eye(4)).sum().backward()
    assert module.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_trains(strict):
    module = register_negative_diagonal(nn.Linear(4, 4, bias=False))
    again = torch.export.export(module, (torch.eye(4),), strict=strict).module()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        (again(torch.eye(4)) - 5).square().sum().backward()
        optimizer.step()
    found = again(torch.eye(4))
    assert (found.diagonal() < 0).all()
