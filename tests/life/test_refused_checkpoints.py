"""Checkpoints that must be refused, before anything is overwritten."""

import warnings

import pytest
import torch
from torch import nn

from negdiag_param import NegExpDiagonal, init_, plain_state_dict, register_negative_diagonal
from tests.support.modules import registered_net, stock_net
from tests.support.tables import MAPS


def positive() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, 3), "bias": torch.ones(3)}


def test_an_infeasible_checkpoint_follows_the_policy():
    expected = torch.ones(3, 3) - 2 * torch.eye(3)
    layer = register_negative_diagonal(nn.Linear(3, 3), map="exp")
    with pytest.warns(UserWarning, match="3 of 3 entries"):
        layer.load_state_dict(positive())
    assert torch.equal(layer.weight, expected)
    silent = register_negative_diagonal(nn.Linear(3, 3), map="exp", infeasible="reflect")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent.load_state_dict(positive())
    assert torch.equal(silent.weight, expected)


def test_an_infeasible_checkpoint_can_be_an_error():
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
    register_negative_diagonal(layer, infeasible="error")
    before = layer.weight.clone()
    with pytest.raises(RuntimeError, match=r"weight.*3 of 3 entries"):
        layer.load_state_dict(positive())
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(bad, assign):
    net = registered_net()
    before = plain_state_dict(net)
    state = stock_net().state_dict()
    state["body.0.weight"][0, 0, 1] = bad
    with pytest.raises(RuntimeError, match=r"body\.0\.weight.*NaN or infinite"):
        net.load_state_dict(state, assign=assign)
    assert torch.equal(net.body[0].weight, before["body.0.weight"])
    assert isinstance(net.body[0].parametrizations.weight.original, nn.Parameter)
    net.body[0].weight.sum().backward()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("theirs", "mine", "words"),
    [
        ({"map": "exp"}, {"map": "softplus"}, ("softplus", r"\bexp\b")),
        ({"map": "sign_flip"}, {"map": "exp"}, (r"\bexp\b", "sign_flip")),
        ({"map": "exp", "margin": 0.5}, {"map": "exp"}, ("0.0", "0.5")),
        ({"map": MAPS["subclass"]}, {"map": MAPS["transform"]}, ("Softplus", "OwnSquareDiagonal")),
    ],
)
def test_a_checkpoint_of_another_map_is_refused(theirs, mine, words, strict):
    def layer(options, value):
        layer = register_negative_diagonal(nn.Linear(3, 3), **options)
        return init_(layer, "weight", nn.init.constant_, value)

    source, target = layer(theirs, -2.0), layer(mine, -3.0)
    before = target.weight.clone()
    expected, found = words
    with pytest.raises(RuntimeError, match=f"(?s)weight.*{expected}.*{found}"):
        target.load_state_dict(source.state_dict(), strict=strict)
    assert torch.equal(target.weight, before)
    target.weight.sum().backward()
    # What the plain state says holds under any map.
    target.load_state_dict(plain_state_dict(source))
    torch.testing.assert_close(target.weight, source.weight)


def test_a_bare_class_marks_its_checkpoints_too():
    def bare(**options):
        layer = nn.Linear(3, 3)
        parametrization = NegExpDiagonal(infeasible="reflect", **options)
        nn.utils.parametrize.register_parametrization(layer, "weight", parametrization)
        return layer

    with pytest.raises(ValueError, match=r"margin=0\.5.*margin=0\.0"):
        bare(margin=0.5).load_state_dict(bare().state_dict())
    helped = register_negative_diagonal(nn.Linear(3, 3), map="exp")
    source = bare()
    helped.load_state_dict(source.state_dict())
    assert torch.equal(helped.weight, source.weight)
