"""The warning about reflected entries: what it says, and that it points at the line that did it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_same_bits
from tests.support.modules import linear


def test_the_bare_door_warns_about_reflected_entries():
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, 1.0)
    with pytest.warns(UserWarning, match=r"weight: .* 3 of 3 entries .* reflected"):
        parametrize.register_parametrization(layer, "weight", NegExpDiagonal())


def test_infeasible_policies_on_assignment():
    value = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    layer = register_negative_diagonal(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"weight: .* 1 of 2 entries .* largest 1, .* reflected"):
        layer.weight = value
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))
    layer = register_negative_diagonal(nn.Linear(2, 2), infeasible="reflect")
    layer.weight = value
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))
    layer = register_negative_diagonal(remove_negative_diagonal(layer), infeasible="error")
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weight: expected a negative diagonal, got 1 of 2"):
        layer.weight = value * 2
    assert_same_bits(layer.weight, before)


NAME, BAD = "weight", torch.ones(3, 3)


def assign(layer):
    layer.weight = BAD


def assign_by_name(layer):
    setattr(layer, NAME, BAD)


def assign_a_parameter(layer):
    layer.weight = nn.Parameter(BAD.clone())


def load(layer):
    layer.load_state_dict({"weight": BAD, "bias": torch.ones(3)})


def load_into_a_model(layer):
    nn.Sequential(layer).load_state_dict({"0.weight": BAD, "0.bias": torch.ones(3)})


def load_by_assignment(layer):
    layer.load_state_dict({"weight": BAD.clone(), "bias": torch.ones(3)}, assign=True)


WAYS = [assign, assign_by_name, assign_a_parameter, load, load_into_a_model, load_by_assignment]


def assert_points_at(record, statement: Callable) -> None:
    """At the only statement of a function."""
    (warning,) = [found for found in record if "reflected" in str(found.message)]
    assert warning.filename == __file__
    assert warning.lineno == statement.__code__.co_firstlineno + 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_points_at_the_line_that_assigns(way):
    layer = register_negative_diagonal(nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="reflected") as record:
        way(layer)
    assert_points_at(record, way)


@pytest.mark.parametrize("way", [assign, assign_by_name], ids=lambda way: way.__name__)
def test_it_points_there_without_the_helper_too(way):
    layer = linear()
    parametrize.register_parametrization(layer, "weight", NegExpDiagonal())
    with pytest.warns(UserWarning, match="reflected") as record:
        way(layer)
    assert_points_at(record, way)


def register(layer):
    parametrize.register_parametrization(layer, "weight", NegExpDiagonal())


def test_it_points_at_the_line_that_registers():
    with pytest.warns(UserWarning, match="reflected") as record:
        register(linear(1.0))
    assert_points_at(record, register)
