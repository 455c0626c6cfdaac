"""``parametrize.remove_parametrizations``: nothing of ours acts once ours is gone."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal


@pytest.mark.parametrize("baked", [True, False])
def test_nothing_is_left_behind(baked):
    layer = register_negative_diagonal(nn.Linear(3, 3))
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=baked)
    assert type(layer) is nn.Linear
    assert vars(layer).keys() == vars(nn.Linear(3, 3)).keys()
    assert not layer._load_state_dict_pre_hooks
    state = nn.Linear(3, 3).state_dict()
    layer.load_state_dict(state, strict=True)
    assert torch.equal(layer.weight, state["weight"])


def test_registering_again_and_again_works():
    layer = nn.Linear(3, 3)
    for kind in ("exp", "softplus", "sign_flip"):
        register_negative_diagonal(layer, map=kind)
        layer.load_state_dict({"weight": -torch.ones(3, 3), "bias": torch.zeros(3)})
        torch.testing.assert_close(layer.weight, -torch.ones(3, 3))
        parametrize.remove_parametrizations(layer, "weight")


def test_one_of_two_goes_and_the_other_loads():
    gru = register_negative_diagonal(nn.GRU(3, 3, 2), "weight_hh*", infeasible="reflect")
    parametrize.remove_parametrizations(gru, "weight_hh_l0")
    state = nn.GRU(3, 3, 2).state_dict()
    gru.load_state_dict(state, strict=True)
    assert torch.equal(gru.weight_hh_l0, state["weight_hh_l0"])
    assert (gru.weight_hh_l1.view(3, 3, 3).diagonal(dim1=1, dim2=2) < 0).all()
    register_negative_diagonal(gru, "weight_hh_l0")
    assert (gru.weight_hh_l0.view(3, 3, 3).diagonal(dim1=1, dim2=2) < 0).all()
