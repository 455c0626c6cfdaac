"""Names, dotted names and patterns."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.modules import Raw, transformer


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in negative_diagonals(model)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head.weight", ["head.weight"]),
        ("encoder.layers.1.linear1.weight", ["encoder.layers.1.linear1.weight"]),
        ("*.linear?.weight", [f"encoder.layers.{i}.linear{j}.weight" for i in "01" for j in "12"]),
        ("encoder.layers.[1].linear2.*", ["encoder.layers.1.linear2.weight"]),
        ("head.*", ["head.weight"]),
    ],
)
def test_a_name_or_pattern_means_tensors_with_a_diagonal(pattern, expected):
    model = transformer()
    assert register_negative_diagonal(model, pattern) is model
    assert names(model) == expected
    remove_negative_diagonal(model, pattern if pattern != "head.*" else "head.w*")
    assert names(model) == []
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_patterns_work_for_removal_and_initialization_again():
    model = register_negative_diagonal(transformer(), "encoder.*.weight")
    everything = names(model)
    remove_negative_diagonal(model, "*.0.*")
    left = [name for name in everything if ".0." not in name]
    assert names(model) == left
    others = {k: v.clone() for k, v in model.state_dict().items() if "original" not in k}
    init_(model, "*", nn.init.constant_, -2.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in others.items())
    for _, diagonal in negative_diagonals(model):
        assert diagonal.allclose(torch.tensor(-2.0))


def test_a_pattern_leaves_buffers_and_vectors_alone():
    model = nn.ModuleDict({"raw": Raw()})
    register_negative_diagonal(model, "raw.[!b]*")
    assert names(model) == ["raw.square"]
    vectors = nn.ModuleDict({"raw": Raw()})
    register_negative_diagonal(vectors, "raw.[sv]*", dims=())
    assert names(vectors) == ["raw.square", "raw.vector"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_module_beside_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3)))
    register_negative_diagonal(model, "0.weight")
    assert names(model) == ["0.weight"]
    init_(model, "*.weight", nn.init.constant_, -2.0)
    assert list(plain_state_dict(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    remove_negative_diagonal(model, "*")
    assert names(model) == []
