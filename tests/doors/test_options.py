"""Options arrive; what ``help``, ``repr`` and the warning about reflected entries say."""

import inspect
import pydoc
import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    register_negative_diagonal,
)
from tests.support.asserts import assert_negative
from tests.support.modules import linear
from tests.support.tables import BUILT_IN, neg_softplus_transform

OPTIONS = ["margin", "dims", "taps", "blocks", "dominance", "infeasible", "cache_in_eval"]
CONSTANTS = {NegSoftplusDiagonal: ["beta"]}


@pytest.mark.parametrize("cls", [NegativeDiagonal, *BUILT_IN.values()])
def test_help_shows_what_users_call_and_nothing_private(cls):
    text = pydoc.plain(pydoc.render_doc(cls))
    ours = text.split("Methods inherited from torch.nn")[0]
    listed = set(re.findall(r"^ \|  (\w+)(?:\(| = |$)", ours, re.MULTILINE))
    assert {"map", "inverse", "forward", "right_inverse"} <= listed
    public = {name for name in listed if not name.startswith("_")} - {cls.__name__}
    assert len(public) <= 10 + (cls is not NegativeDiagonal), sorted(public)
    private = {name for name in listed if re.match("_[^_]", name)}
    assert not private - set(dir(nn.Module))


def test_the_options_are_shown_by_name():
    parameters = inspect.signature(register_negative_diagonal).parameters
    assert list(parameters) == ["module", "tensor_name", "map", *OPTIONS, "options"]
    for cls in BUILT_IN.values():
        names = list(inspect.signature(cls).parameters)
        assert sorted(names) == sorted([*OPTIONS, *CONSTANTS.get(cls, [])])


def test_an_instance_is_a_template():
    template = NegExpDiagonal(margin=0.5)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    register_negative_diagonal(model, "*.weight", map=template)
    first, second = (layer.parametrizations.weight[0] for layer in model)
    assert first is not second
    assert first is not template
    for layer in model:
        assert_negative(layer.weight.diagonal(), 0.5)
        assert "margin=0.5" in repr(layer)


@pytest.mark.parametrize("name", BUILT_IN)
def test_options_arrive_and_repr_shows_what_differs_from_the_defaults(name):
    cls = BUILT_IN[name]
    assert repr(cls()) == f"{cls.__name__}()"
    options = {"margin": 0.5, "dims": (0, 1), "taps": "center", "blocks": 2, "infeasible": "error"}
    text = ", ".join(f"{option}={value!r}" for option, value in options.items())
    assert repr(cls(**options)) == f"{cls.__name__}({text})"
    options = {"margin": 0.5, "infeasible": "reflect", "cache_in_eval": True}
    layer = register_negative_diagonal(nn.Linear(2, 2), map=name, **options)
    text = ", ".join(f"{option}={value!r}" for option, value in options.items())
    assert repr(layer.parametrizations.weight[0]) == f"{cls.__name__}({text})"
    layer = register_negative_diagonal(nn.Linear(2, 2), map=neg_softplus_transform())
    assert re.search("SoftplusTransform.*AffineTransform", repr(layer.parametrizations), re.DOTALL)


@pytest.mark.parametrize(
    "put",
    [
        lambda layer, value: setattr(layer, "weight", value),
        lambda layer, value: layer.load_state_dict({"weight": value}, strict=False),
    ],
)
def test_infeasible_values_are_reflected_with_a_warning_or_silently(put):
    value = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    for policy in ("warn", "reflect"):
        layer = register_negative_diagonal(nn.Linear(2, 2), infeasible=policy)
        message = r"weight: .* 1 of 2 entries .* largest 1, .* reflected"
        with pytest.warns(UserWarning, match=message) if policy == "warn" else nullcontext():
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
    remedy = "to keep such values, remove_negative_diagonal first"
    changes = f"torch.float32; {CHANGES[margin, entries]}; {remedy}"
    assert str(record[0].message).endswith(changes)
    found = layer.weight.diagonal().tolist()
    for before, after in zip(entries, found, strict=True):
        kept = before <= -margin and before < 0
        expected = before if kept else -abs(before) if abs(before) > margin else -(margin + 1e-3)
        assert after == pytest.approx(expected)


def registered() -> nn.Module:
    return register_negative_diagonal(nn.Linear(3, 3))


def bare() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", NegExpDiagonal())


CASES = [
    (registered, "layer.weight = ones"),
    (registered, "setattr(layer, 'weight', ones)"),
    (registered, "layer.weight = nn.Parameter(ones)"),
    (registered, "layer.load_state_dict({'weight': ones, 'bias': ones[0]})"),
    (registered, "layer.load_state_dict({'weight': ones, 'bias': ones[0]}, assign=True)"),
    (registered, "nn.Sequential(layer).load_state_dict({'0.weight': ones, '0.bias': ones[0]})"),
    (bare, "layer.weight = ones"),
    (bare, "setattr(layer, 'weight', ones)"),
    (lambda: linear(1.0), "register_parametrization(layer, 'weight', NegExpDiagonal())"),
]


@pytest.mark.parametrize(("make", "statement"), CASES)
def test_the_warning_points_at_the_line_that_did_it(make, statement):
    names = {"layer": make(), "ones": torch.ones(3, 3), "nn": nn, "NegExpDiagonal": NegExpDiagonal}
    names["register_parametrization"] = parametrize.register_parametrization
    code = compile("pass\n" * 41 + statement, "users.py", "exec")
    with pytest.warns(UserWarning, match="3 of 3 entries .* reflected") as record:
        exec(code, names)
    (warning,) = [found for found in record if "reflected" in str(found.message)]
    assert (warning.filename, warning.lineno) == ("users.py", 42)
