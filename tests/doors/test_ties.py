"""What is no second place of a tensor: registering is let pass. The others are bad input."""

from functools import partial

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_negative


def test_one_module_under_two_names_is_not_tied():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    register_negative_diagonal(model, "*.weight")
    assert [name for name, _ in negative_diagonals(model)] == ["0.weight"]
    model(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero()


def holding_itself(kind: type) -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.kept = kind(enumerate("a"))
    layer.kept[0] = layer.kept
    return layer


def holding_others() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.kept = [torch.ones(3, 3), layer.weight.detach().clone()]
    return layer


def listing_all() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    model.to_be_reduced = list(model.parameters())
    return model


def recurrent(kind: type) -> nn.Module:
    """With the list that it has by itself, after a life with a negative diagonal."""
    layer = register_negative_diagonal(kind(3, 3), "weight_hh_l0")
    layer(torch.ones(1, 1, 3))
    return remove_negative_diagonal(layer, "weight_hh_l0")


LET_PASS = {
    **{f"a {kind.__name__} in itself": partial(holding_itself, kind) for kind in (list, dict)},
    **{f"{kind.__name__}'s list": partial(recurrent, kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
    "other tensors": holding_others,
    "a wrapper's list": listing_all,
}


@pytest.mark.parametrize("make", LET_PASS.values(), ids=LET_PASS)
def test_what_is_no_second_place_is_let_pass(make):
    model = make()
    name = "weight_hh_l0" if isinstance(model, nn.RNNBase) else "*weight"
    register_negative_diagonal(model, name)
    for _, diagonal in negative_diagonals(model):
        assert_negative(diagonal)
    assert len(list(negative_diagonals(model)))


@pytest.mark.integration("ncps")
@pytest.mark.filterwarnings("ignore")
def test_liquid_networks_keep_theirs_in_a_dict_and_are_refused():
    from ncps.torch import LTC

    network = LTC(4, 5)
    with pytest.raises(ValueError, match=r"rnn_cell\.sigma: .* in self\._params\['sigma'\]"):
        register_negative_diagonal(network, "rnn_cell.sigma")
