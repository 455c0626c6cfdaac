"""A buffer that stays out of checkpoints stays out of them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal


def module(persistent=False):
    torch.manual_seed(0)
    made = nn.Module()
    made.register_buffer("matrix", torch.randn(3, 3), persistent=persistent)
    made.bias = nn.Parameter(torch.ones(3))
    return made


def registered(persistent=False):
    return register_negative_diagonal(module(persistent), "matrix", map="softplus")


@pytest.mark.parametrize(
    "same", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_it_is_in_no_state(same):
    found = same(registered())
    assert list(found.state_dict()) == list(plain_state_dict(found)) == ["bias"]
    before = found.matrix.clone()
    found.load_state_dict(registered().state_dict(), strict=True)
    found.load_state_dict(module().state_dict(), strict=True)
    assert torch.equal(found.matrix, before)
    remove_negative_diagonal(found, "matrix")
    assert list(found.state_dict()) == ["bias"]
    assert torch.equal(found.matrix, before)


def test_a_persistent_one_is():
    assert "matrix" in plain_state_dict(registered(persistent=True))
    assert "parametrizations.matrix.original" in registered(persistent=True).state_dict()


def test_a_failure_leaves_it_as_it_was():
    made = module()
    made.bad = nn.Parameter(torch.full((2, 2), torch.nan))
    made.register_buffer("other", -torch.ones(2, 2))
    with pytest.raises(ValueError, match="NaN"):
        register_negative_diagonal(made, "bad")
    register_negative_diagonal(made, "matrix")
    parametrize.remove_parametrizations(made, "matrix")
    assert isinstance(made.matrix, torch.Tensor)
