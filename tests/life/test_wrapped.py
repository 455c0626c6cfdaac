"""A model within a wrapper that passes attributes through keeps its names and its life."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.modules import Transparent, stock

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def fabric(model: nn.Module) -> nn.Module:
    fabric = importlib.import_module("lightning.fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).setup(model)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "twice": lambda model: Transparent(Transparent(model)),
}
WITH_LIGHTNING = pytest.param(fabric, marks=pytest.mark.integration("lightning"))
every_wrapper = pytest.mark.parametrize("wrap", [*WRAPPERS.values(), WITH_LIGHTNING])


def names(model):
    return [name for name, _ in negative_diagonals(model)]


@every_wrapper
def test_the_plain_state_is_that_of_the_wrapped_stock_model(wrap):
    wrapped = wrap(register_negative_diagonal(stock(), "*.weight"))
    plain, expected = plain_state_dict(wrapped), wrap(stock()).state_dict()
    assert list(plain) == list(expected)
    other = wrap(stock())
    other.load_state_dict(plain, strict=True)
    x = torch.randn(2, 4)
    torch.testing.assert_close(other(x), wrapped(x))


def first_layer(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = stock()
    model[0] = wrap(model[0])
    return model


@pytest.mark.parametrize("place", [lambda wrap: wrap(stock()), first_layer])
@every_wrapper
def test_registering_initialising_and_removing_go_through(wrap, place):
    wrapped = place(wrap)
    register_negative_diagonal(wrapped, "0.weight")
    register_negative_diagonal(wrapped, "2.*")
    assert names(wrapped) == ["0.weight", "2.weight"]
    init_(wrapped, "*.weight", nn.init.constant_, 0.5)
    for _, diagonal in negative_diagonals(wrapped):
        torch.testing.assert_close(diagonal, torch.full((4,), -0.5))
    wrapped(torch.ones(1, 4)).sum().backward()
    expected = wrapped(torch.ones(1, 4))
    remove_negative_diagonal(wrapped, "*.weight")
    torch.testing.assert_close(wrapped(torch.ones(1, 4)), expected)
    assert names(wrapped) == []


def test_a_name_with_the_wrapper_in_it_is_understood_and_shown_where_the_wrapper_hides_nothing():
    compiled = torch.compile(register_negative_diagonal(stock(), "0.weight"), backend="eager")
    init_(compiled, "_orig_mod.0.weight", nn.init.constant_, -3.0)
    assert names(compiled) == ["0.weight"]
    assert next(negative_diagonals(compiled))[1].allclose(torch.tensor(-3.0))
    assert names(nn.Sequential(compiled._orig_mod)) == ["0.0.weight"]


class Frozen(nn.Sequential):
    """A wrapper that drops keys."""

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("0.")}


def test_what_a_wrapper_drops_or_has_too_is_not_passed_through():
    model = register_negative_diagonal(Frozen(*stock()), "*.weight")
    assert list(plain_state_dict(model)) == ["2.weight", "2.bias"]
    wrapper = Transparent(nn.Identity())
    wrapper.weight = nn.Parameter(torch.rand(3, 3))
    wrapper.inner = nn.Linear(3, 3)
    register_negative_diagonal(wrapper, "inner.weight")
    assert names(wrapper) == ["inner.weight"]
    assert "parametrizations" in wrapper.inner._modules
    assert "parametrizations" not in wrapper._modules


@pytest.mark.integration("peft")
def test_lora_beside_a_registered_layer():
    import peft

    model = register_negative_diagonal(stock(), "0.weight")
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["2"]))
    assert names(tuned) == ["0.weight"]
    x = torch.randn(2, 4)
    init_(tuned, "0.weight", nn.init.constant_, 0.5)
    expected = tuned(x)
    assert "base_model.model.0.weight" in plain_state_dict(tuned)
    remove_negative_diagonal(tuned, "0.weight")
    torch.testing.assert_close(tuned(x), expected)
