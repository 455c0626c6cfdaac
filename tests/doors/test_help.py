"""What ``help`` shows of the classes."""

import inspect
import pydoc
import re

import pytest
from torch import nn

from negdiag_param import NegativeDiagonal, NegSoftplusDiagonal, register_negative_diagonal
from tests.support.tables import BUILT_IN

OPTIONS = ["margin", "dims", "taps", "blocks", "infeasible", "cache_in_eval"]
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
    assert len(names_in_help(NegativeDiagonal)) <= 10, sorted(names_in_help(NegativeDiagonal))


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
    assert list(parameters) == ["module", "tensor_name", "map", *OPTIONS]
    for cls in BUILT_IN.values():
        names = list(inspect.signature(cls).parameters)
        assert sorted(names) == sorted([*OPTIONS, *CONSTANTS.get(cls, [])])


def test_an_unknown_option_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="margn"):
        register_negative_diagonal(layer, margn=0.1)
    assert type(layer) is nn.Linear
