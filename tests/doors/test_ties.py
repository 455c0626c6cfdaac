"""What is no second place of a tensor: registering is let pass. The others are bad input."""

import pytest
import torch
from torch import nn

from negdiag_param import negative_diagonals, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_negative


@pytest.mark.parametrize("kind", [list, dict])
def test_a_container_that_holds_itself_is_no_trap(kind):
    layer = nn.Linear(4, 4)
    layer.kept = kind(enumerate("a"))
    layer.kept[0] = layer.kept
    assert_negative(register_negative_diagonal(layer).weight.diagonal())


def test_one_module_under_two_names_is_not_tied():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    register_negative_diagonal(model, "*.weight")
    assert [name for name, _ in negative_diagonals(model)] == ["0.weight"]
    model(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero()


def test_a_wrapper_may_list_all_parameters_and_a_module_keep_other_tensors():
    model = nn.Sequential(nn.Linear(3, 3))
    model.to_be_reduced = list(model.parameters())
    model[0].kept = [torch.ones(3, 3), model[0].weight.detach().clone()]
    register_negative_diagonal(model, "0.weight")


@pytest.mark.parametrize("recurrent", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_may_keep_the_list_that_they_have_by_themselves(recurrent):
    layer = register_negative_diagonal(recurrent(3, 3), "weight_hh_l0")
    layer(torch.ones(1, 1, 3))
    remove_negative_diagonal(layer, "weight_hh_l0")
    register_negative_diagonal(layer, "weight_hh_l0")


@pytest.mark.integration("ncps")
@pytest.mark.filterwarnings("ignore")
def test_liquid_networks_keep_theirs_in_a_dict_and_are_refused():
    from ncps.torch import LTC

    network = LTC(4, 5)
    with pytest.raises(ValueError, match=r"rnn_cell\.sigma: .* in self\._params\['sigma'\]"):
        register_negative_diagonal(network, "rnn_cell.sigma")
