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


def attribute(module):
    object.__setattr__(module, "kept", module.weight)


def in_dict(module):
    module.kept = {"w": module.weight}


def in_list(module):
    module.kept = [1, module.weight]


def nested(module):
    module.kept = {"a": [(module.weight,)]}


WAYS = {
    "attribute": (attribute, r"in self.kept,"),
    "dict": (in_dict, r"in self\.kept\['w'\],"),
    "list": (in_list, r"in self\.kept\[1\],"),
    "nested": (nested, r"in self\.kept\['a'\]\[0\]\[0\],"),
}


@pytest.mark.parametrize(("keep", "where"), WAYS.values(), ids=WAYS)
def test_it_is_refused_naming_the_attribute(keep, where):
    module = Keeping(keep)
    before = module.weight
    with pytest.raises(ValueError, match=rf"weight: expected .* {where} shape \(3, 3\)"):
        register_negative_diagonal(module)
    assert module.weight is before
    assert type(module) is Keeping


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


@pytest.mark.filterwarnings("ignore")
def test_liquid_networks():
    ncps = pytest.importorskip("ncps.torch")
    network = ncps.LTC(4, 5)
    with pytest.raises(ValueError, match=r"rnn_cell\.sigma: .* in self\._params\['sigma'\]"):
        register_negative_diagonal(network, "rnn_cell.sigma")


def test_shared_originals_are_not_baked_twice():
    model = register_negative_diagonal(
        nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), "*.weight"
    )
    model[1].parametrizations.weight.original = model[0].parametrizations.weight.original
    before = model[0].weight.clone()
    for name in ("0.weight", "*.weight"):
        with pytest.raises(ValueError, match=r"tied to [01]\.weight, .* twice"):
            remove_negative_diagonal(model, name)
    for layer in model:
        assert torch.equal(layer.weight, before)
