"""What fails at its second tensor leaves the first, and all there is to the model, as it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import (
    NegativeDiagonal,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.modules import Half, linear
from tests.support.state import state_of


class Moody(NegativeDiagonal):
    """A map that can be made to fail."""

    fails = False

    def map(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("moody")
        return -x.exp()

    def inverse(self, d: Tensor) -> Tensor:
        return (-d).log()


class Shallow(Moody):
    """A map whose inverse fails for large entries only."""

    def inverse(self, d: Tensor) -> Tensor:
        return d if (d < -5).any() else super().inverse(d)


def model(first: float = -2.0, second: float = -2.0) -> nn.Sequential:
    return nn.Sequential(linear(first), linear(second))


def after_a_chain() -> nn.Sequential:
    made = model(-2.0, -14.0)
    parametrize.register_parametrization(made[0], "weight", Half())
    return made


def moody() -> nn.Sequential:
    made = register_negative_diagonal(model(), "*.weight", map=Moody)
    made[1].parametrizations.weight[0].fails = True
    return made


def register(module: nn.Module) -> None:
    register_negative_diagonal(module, "*.weight", map=Shallow)


LEADS_BACK = r"1\.weight: .* does not lead back"
CASES: dict[str, tuple[Callable, Callable, type[Exception], str]] = {
    "registering with a wrong inverse": (
        lambda: model(-2.0, -7.0),
        register,
        ValueError,
        LEADS_BACK,
    ),
    "registering after a chain": (after_a_chain, register, ValueError, LEADS_BACK),
    "registering what is registered": (
        lambda: register_negative_diagonal(model(), "1.weight"),
        register,
        ValueError,
        r"1\.weight: .*registered",
    ),
    "removing": (
        moody,
        lambda module: remove_negative_diagonal(module, "*.weight"),
        RuntimeError,
        "moody",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failure_at_the_second_tensor_changes_nothing(case):
    make, call, error, message = CASES[case]
    module = make()
    before = state_of(module)
    with pytest.raises(error, match=message):
        call(module)
    assert state_of(module) == before


def test_a_failure_in_the_middle_of_registering_changes_nothing(monkeypatch):
    module, calls, real = model(), [], torch.autograd.graph.increment_version
    before = state_of(module)

    def fails_late(tensor: Tensor) -> None:
        calls.append(tensor)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        real(tensor)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", fails_late)
    with pytest.raises(RuntimeError, match="no memory"):
        register_negative_diagonal(module, "*.weight")
    assert state_of(module) == before


def test_removal_with_a_graph_that_is_alive_under_swapping():
    module = register_negative_diagonal(model(), "*.weight")
    before = [layer.weight.detach().clone() for layer in module]
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        output = module(torch.ones(1, 3))
        remove_negative_diagonal(module, "*.weight")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    output.sum().backward()
    for layer, weight in zip(module, before, strict=True):
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, weight)
