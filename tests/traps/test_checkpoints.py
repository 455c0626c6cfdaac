"""Traps of loading: keys and hooks that do not match, values that mean something else."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.traps.naive import NaiveSoftplus, feasible, naive


def test_a_plain_checkpoint_does_not_load():
    """Trap: the key of the weight changes, so checkpoints from before registration fail."""
    plain = {key: value - 1 for key, value in feasible().state_dict().items()}
    with pytest.raises(RuntimeError, match="Missing key"):
        naive(feasible()).load_state_dict(plain)
    ours = register_negative_diagonal(feasible())
    ours.load_state_dict(plain)
    torch.testing.assert_close(ours.weight, plain["weight"])


def test_a_plain_checkpoint_is_ignored_without_strict():
    """Trap: with ``strict=False`` the weight silently keeps its old value."""
    plain = {"weight": feasible().weight.detach() - 1}
    layer = naive(feasible())
    layer.load_state_dict(plain, strict=False)
    torch.testing.assert_close(layer.weight, feasible().weight)
    ours = register_negative_diagonal(feasible())
    ours.load_state_dict(plain, strict=False)
    torch.testing.assert_close(ours.weight, plain["weight"])


def test_a_checkpoint_of_another_map_loads():
    """Trap: an exp checkpoint loads into a softplus model, where it means another weight."""
    layer = naive(feasible())
    other = naive(feasible(), NaiveSoftplus)
    other.load_state_dict(layer.state_dict())
    assert not other.weight.allclose(layer.weight)
    exp = register_negative_diagonal(feasible(), map="exp")
    softplus = register_negative_diagonal(feasible(), map="softplus")
    before = softplus.weight.clone()
    with pytest.raises(RuntimeError, match=r"softplus.*exp"):
        softplus.load_state_dict(exp.state_dict())
    assert torch.equal(softplus.weight, before)


def test_a_load_hook_stays_behind_after_removal():
    """Trap: the hook of torch's own weight_norm outlives its removal and then breaks loading."""
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.remove_parametrizations(layer, "weight")
    plain = nn.Linear(3, 3).state_dict()
    legacy = {"weight_g": torch.ones(3, 1), "weight_v": plain["weight"], "bias": plain["bias"]}
    assert layer.load_state_dict(legacy, strict=False).unexpected_keys != ["weight_g", "weight_v"]
    ours = remove_negative_diagonal(register_negative_diagonal(feasible()))
    assert not ours._load_state_dict_pre_hooks
    ours.load_state_dict(feasible().state_dict())
