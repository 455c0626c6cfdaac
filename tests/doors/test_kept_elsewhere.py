"""A tensor that some module keeps a second time would be read there unconstrained."""

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal, remove_negative_diagonal


class Keeping(nn.Module):
    """Keeps its parameter where ``keep`` puts it, and computes with that."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        keep(self)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_lists_of_a_wrapper_are_no_case_of_it():
    model = nn.Sequential(nn.Linear(3, 3))
    model.to_be_reduced = list(model.parameters())
    register_negative_diagonal(model, "0.weight")


def test_other_tensors_may_be_kept():
    module = Keeping(lambda m: setattr(m, "kept", [torch.ones(3, 3), m.weight.detach().clone()]))
    register_negative_diagonal(module)


@pytest.mark.parametrize("recurrent", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_are_no_case_of_it(recurrent):
    layer = register_negative_diagonal(recurrent(3, 3), "weight_hh_l0")
    layer(torch.ones(1, 1, 3))
    remove_negative_diagonal(layer, "weight_hh_l0")
    register_negative_diagonal(layer, "weight_hh_l0")


@pytest.mark.integration("ncps")
@pytest.mark.filterwarnings("ignore")
def test_liquid_networks():
    from ncps.torch import LTC

    network = LTC(4, 5)
    with pytest.raises(ValueError, match=r"rnn_cell\.sigma: .* in self\._params\['sigma'\]"):
        register_negative_diagonal(network, "rnn_cell.sigma")
