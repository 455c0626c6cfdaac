"""What fails at its second tensor leaves the first as it was."""

import pytest
import torch
from torch import nn

from negdiag_param import (
    NegativeDiagonal,
    init_,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.modules import Half, linear
from tests.support.state import state_of


class Moody(NegativeDiagonal):
    """A map that can be made to fail."""

    fails = False

    def map(self, x):
        if self.fails:
            raise RuntimeError("moody")
        return -x.exp()

    def inverse(self, d):
        return (-d).log()


def model(map="exp"):
    torch.manual_seed(0)
    return register_negative_diagonal(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "*.weight", map=map
    )


def assert_alive(module, before):
    for layer, weight in zip(module, before, strict=True):
        assert type(layer).__name__ == "ParametrizedLinear"
        assert torch.equal(layer.weight, weight)
        layer(torch.ones(1, 3)).sum().backward()
    assert list(module.state_dict()) == list(model().state_dict())
    remove_negative_diagonal(module, "*.weight")
    assert all(type(layer) is nn.Linear for layer in module)


def weights(module):
    return [layer.weight.detach().clone() for layer in module]


def test_removal_when_a_map_fails():
    module = model(Moody)
    before = weights(module)
    module[1].parametrizations.weight[0].fails = True
    with pytest.raises(RuntimeError, match="moody"):
        remove_negative_diagonal(module, "*.weight")
    module[1].parametrizations.weight[0].fails = False
    assert_alive(module, before)


def test_removal_with_a_graph_that_is_alive_under_swapping():
    module = model()
    before = weights(module)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        output = module(torch.ones(1, 3))
        remove_negative_diagonal(module, "*.weight")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    output.sum().backward()
    assert all(type(layer) is nn.Linear for layer in module)
    assert all(map(torch.equal, weights(module), before))


def test_initialising():
    module = model()
    before = weights(module)
    values = iter([-2.0, float("nan")])
    with pytest.raises(ValueError, match=r"1\.weight: .* NaN"):
        init_(module, "*.weight", lambda tensor: tensor.fill_(next(values)))
    assert_alive(module, before)


def test_registration():
    class Shallow(Moody):
        def inverse(self, d):
            return d if (d < -5).any() else super().inverse(d)

    module = nn.Sequential(linear(-2.0), linear(-7.0))
    before = state_of(module)
    with pytest.raises(ValueError, match=r"1\.weight: .* does not lead back"):
        register_negative_diagonal(module, "*.weight", map=Shallow)
    assert state_of(module) == before


def test_registration_after_a_chain():
    class WrongInverse(Moody):
        def inverse(self, d):
            return d

    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.utils.parametrize.register_parametrization(module[0], "weight", Half())
    before = weights(module)
    with pytest.raises(ValueError, match="does not lead back"):
        register_negative_diagonal(module, "*.weight", map=WrongInverse)
    assert all(map(torch.equal, weights(module), before))
    assert type(module[1]) is nn.Linear
