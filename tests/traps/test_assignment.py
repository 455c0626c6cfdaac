"""Traps of assigning to a parametrized weight."""

import pytest
import torch

from negdiag_param import register_negative_diagonal
from tests.traps.naive import NaiveFlip, feasible, naive


def test_assigning_aliases_the_users_tensor():
    """Trap: what ``right_inverse`` returns is ``set_()`` into the parameter, never copied."""
    value = feasible().weight.detach().clone()
    layer = naive(feasible(), NaiveFlip)
    layer.weight = value
    ours = register_negative_diagonal(feasible(), map="sign_flip")
    ours.weight = value
    value.fill_(7.0)
    assert (layer.parametrizations.weight.original == 7).all()
    assert not (ours.weight == 7).any()


def test_a_wrong_shape_resizes_the_parameter():
    """Trap: assigning a tensor of another shape silently resizes the parameter."""
    wrong = -torch.eye(6)
    layer = naive(feasible(), NaiveFlip)
    layer.weight = wrong
    assert layer.weight.shape == (6, 6)
    ours = register_negative_diagonal(feasible(), map="sign_flip")
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(6, 6\)"):
        ours.weight = wrong
    assert ours.weight.shape == (4, 4)
