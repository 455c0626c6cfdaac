"""No cache outlives a step of any optimizer."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.modules import LearnedScale


class ThroughData(torch.optim.Optimizer):
    """Another package's, which writes where no version counter sees it."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(0.1 * parameter.grad)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "through data": ThroughData,
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
X = torch.ones(2, 4)


def computed(layer):
    """The weight, past every cache."""
    parametrization, original = layer.parametrizations.weight[0], layer.parametrizations.weight
    return copy.deepcopy(parametrization)(original.original.detach().clone())


def assert_fresh_after(step, layer):
    for _ in range(3):
        layer.zero_grad()
        layer(X).sum().backward()
        with torch.no_grad():
            before = layer.weight.clone()
            step()
            assert not torch.equal(layer.weight, before)
            assert torch.equal(layer.weight, computed(layer))


@pytest.mark.parametrize("block", [nullcontext, parametrize.cached], ids=["eval", "cached"])
@every_optimizer
def test_the_weight_is_fresh(make, block):
    layer = register_negative_diagonal(nn.Linear(4, 4), cache_in_eval=True).eval()
    optimizer = make(layer.parameters())
    with block():
        assert_fresh_after(optimizer.step, layer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("fused", [False, True])
def test_after_a_compiled_step_too(fused, backend):
    torch._dynamo.reset()
    layer = register_negative_diagonal(nn.Linear(4, 4), cache_in_eval=True).eval()
    optimizer = torch.optim.Adam(layer.parameters(), lr=torch.tensor(0.1), fused=fused)
    assert_fresh_after(torch.compile(optimizer.step, backend=backend), layer)


def test_what_a_map_has_learnt_counts_too():
    layer = register_negative_diagonal(nn.Linear(4, 4), map=LearnedScale, cache_in_eval=True)
    layer.eval()
    with torch.no_grad():
        before = layer.weight.clone()
        layer.parametrizations.weight[0].scale.mul_(2)
        assert not torch.equal(layer.weight, before)
        assert torch.equal(layer.weight, computed(layer))
