"""What ``help`` shows of the classes."""

import pydoc
import re

import pytest
from torch import nn

from negdiag_param import NegativeDiagonal
from tests.support.tables import BUILT_IN


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
