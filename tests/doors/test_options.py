"""Options arrive, and what ``help`` and ``repr`` show of them."""

import inspect
import pydoc
import re

import pytest
from torch import nn

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    register_negative_diagonal,
)
from tests.support.asserts import assert_negative
from tests.support.tables import BUILT_IN, neg_softplus_transform

OPTIONS = ["margin", "dims", "taps", "blocks", "dominance", "infeasible", "cache_in_eval"]
CONSTANTS = {NegSoftplusDiagonal: ["beta"]}


def is_function(value: object) -> bool:
    return callable(value) or isinstance(value, (classmethod, staticmethod))


def names_in_help(cls: type) -> set[str]:
    """The names of the class's own that pydoc lists."""
    skipped = {"__module__", "__doc__", "__annotations__"}
    skipped |= {"__static_attributes__", "__firstlineno__"}
    return {
        name
        for name, value in vars(cls).items()
        if name not in skipped
        and (is_function(value) if name.startswith("__") else not name.startswith("_"))
    }


def test_the_base_class_is_small():
    assert len(names_in_help(NegativeDiagonal)) <= 12, sorted(names_in_help(NegativeDiagonal))


@pytest.mark.parametrize("cls", [NegativeDiagonal, *BUILT_IN.values()])
def test_help_shows_what_users_call_and_nothing_private(cls):
    text = pydoc.plain(pydoc.render_doc(cls))
    ours = text.split("Methods inherited from torch.nn")[0]
    listed = set(re.findall(r"^ \|  (\w+)(?:\(| = |$)", ours, re.MULTILINE))
    assert {"map", "inverse", "forward", "right_inverse"} <= listed
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
