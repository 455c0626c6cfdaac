"""Which tensors a name or a pattern means, and the diagonals that they yield."""

from collections.abc import Callable
from functools import partial

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
from tests.support.asserts import assert_negative
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


def test_a_pattern_leaves_buffers_alone_and_vectors_unless_every_entry_is_meant():
    model, vectors = nn.ModuleDict({"raw": Raw()}), nn.ModuleDict({"raw": Raw()})
    assert names(register_negative_diagonal(model, "raw.[!b]*")) == ["raw.square"]
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


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_lost_its_memory_is_refused(size):
    layer = register_negative_diagonal(nn.Linear(size, size))
    layer.parametrizations.weight.original.untyped_storage().resize_(0)
    reads = (lambda: dict(negative_diagonals(layer)), lambda: init_(layer, "weight", nn.init.ones_))
    for read in reads:
        with pytest.raises(ValueError, match=r"weight: expected a tensor of 2 .* got what is left"):
            read()


@pytest.mark.parametrize("pattern", ["*.weight", "2.weight"])
def test_one_module_under_two_names_is_not_tied(pattern):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    register_negative_diagonal(model, pattern)
    assert [name for name, _ in negative_diagonals(model)] == ["0.weight"]
    model(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero()


def holding(keep: Callable[[nn.Linear], object]) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].kept = keep(model[0])
    model.to_be_reduced = list(model.parameters())
    return model


def itself(kind: type) -> object:
    kept = kind(enumerate("a"))
    kept[0] = kept
    return kept


def recurrent(kind: type) -> nn.Module:
    """With the list that it has by itself, after a life with a negative diagonal."""
    layer = register_negative_diagonal(kind(3, 3), "weight_hh_l0")
    layer(torch.ones(1, 1, 3))
    return remove_negative_diagonal(layer, "weight_hh_l0")


LET_PASS = {
    "a list in itself": lambda: holding(lambda _: itself(list)),
    "a dict in itself": lambda: holding(lambda _: itself(dict)),
    "other tensors": lambda: holding(lambda layer: [layer.weight.detach().clone(), torch.ones(3)]),
    **{f"{kind.__name__}'s list": partial(recurrent, kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
}


@pytest.mark.parametrize("make", LET_PASS.values(), ids=LET_PASS)
def test_what_is_no_second_place_is_let_pass(make):
    model = make()
    name = "weight_hh_l0" if isinstance(model, nn.RNNBase) else "*weight"
    register_negative_diagonal(model, name)
    for _, diagonal in negative_diagonals(model):
        assert_negative(diagonal)
    assert len(list(negative_diagonals(model)))


def test_tensors_beside_each_other_in_one_memory_are_their_own():
    memory, columns = torch.randn(8, 4), torch.randn(4, 8)
    for tensor, other in (
        (memory[4:], memory[:4]),
        (memory[4:], memory.view(torch.float64)[:4]),
        (columns[:, :4], columns[:, 4:]),
    ):
        module, before = nn.Module(), other.clone()
        module.one, module.other = nn.Parameter(tensor), nn.Buffer(other)
        register_negative_diagonal(module, "one")
        assert torch.equal(module.other, before)


@pytest.mark.integration("ncps")
@pytest.mark.filterwarnings("ignore")
def test_liquid_networks_keep_theirs_in_a_dict_and_are_refused():
    from ncps.torch import LTC

    network = LTC(4, 5)
    with pytest.raises(ValueError, match=r"rnn_cell\.sigma: .* in self\._params\['sigma'\]"):
        register_negative_diagonal(network, "rnn_cell.sigma")
