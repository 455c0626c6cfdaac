"""The warning about reflected entries: what it says, and that it points at the line that did it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal, register_negative_diagonal
from tests.support.modules import linear


def assigned(layer: nn.Module, value: torch.Tensor) -> None:
    layer.weight = value


def loaded(layer: nn.Module, value: torch.Tensor) -> None:
    layer.load_state_dict({"weight": value}, strict=False)


@pytest.mark.parametrize("put", [assigned, loaded])
def test_infeasible_values_are_reflected_with_a_warning_or_silently(put):
    value = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    layer = register_negative_diagonal(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"weight: .* 1 of 2 entries .* largest 1, .* reflected"):
        put(layer, value)
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))
    layer = register_negative_diagonal(nn.Linear(2, 2), infeasible="reflect")
    put(layer, value)
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))


CHANGES = {
    (0.0, (2.0, 3.0)): "2 reflected, d -> -|d|",
    (0.0, (2.0, 0.0)): "1 reflected, d -> -|d|; 1 set to -0.001, as -|d| is not below 0",
    (0.0, (0.0, -0.2)): "1 set to -0.001, as -|d| is not below 0",
    (0.5, (2.0, -0.2)): "1 reflected, d -> -|d|; 1 set to -0.501, as -|d| is not below -0.5",
    (0.5, (0.4, -0.2)): "2 set to -0.501, as -|d| is not below -0.5",
    (0.5, (0.5, -0.5)): "1 set to -0.501, as -|d| is not below -0.5",
    (0.5, (2.0, -0.5)): "1 reflected, d -> -|d|",
}


@pytest.mark.parametrize(("margin", "entries"), CHANGES)
def test_the_warning_says_what_became_of_how_many(margin, entries):
    layer = register_negative_diagonal(nn.Linear(2, 2), margin=margin)
    with pytest.warns(UserWarning, match="weight: expected") as record:
        layer.weight = torch.diag(torch.tensor(entries))
    assert str(record[0].message).endswith(f"torch.float32; {CHANGES[margin, entries]}")
    found = layer.weight.diagonal().tolist()
    for before, after in zip(entries, found, strict=True):
        kept = before <= -margin and before < 0
        expected = before if kept else -abs(before) if abs(before) > margin else -(margin + 1e-3)
        assert after == pytest.approx(expected)


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


def register(layer):
    parametrize.register_parametrization(layer, "weight", NegExpDiagonal())


def bare() -> nn.Module:
    layer = linear()
    register(layer)
    return layer


CASES = [
    *((way, lambda: register_negative_diagonal(nn.Linear(3, 3))) for way in WAYS),
    (assign, bare),
    (assign_by_name, bare),
    (register, lambda: linear(1.0)),
]


@pytest.mark.parametrize(("way", "make"), CASES)
def test_the_warning_points_at_the_line_that_did_it(way, make):
    layer = make()
    with pytest.warns(UserWarning, match="3 of 3 entries .* reflected") as record:
        way(layer)
    (warning,) = [found for found in record if "reflected" in str(found.message)]
    assert warning.filename == __file__
    # The only statement of the function.
    assert warning.lineno == way.__code__.co_firstlineno + 1
