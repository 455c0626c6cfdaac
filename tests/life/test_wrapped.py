"""What others wrap around a model or its parts, or put in place of a forward, is honoured."""

import copy
import importlib
from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.modules import Transparent, stock

pytestmark = pytest.mark.filterwarnings("ignore")


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


def forward_of_its_own(module):
    plain = module.forward
    module.forward = MethodType(lambda self, *args: 2 * plain(*args), module)


def forward_hook(module):
    module.register_forward_hook(lambda *_: 2 * _[-1])


def global_hook(module):
    return nn.modules.module.register_module_forward_hook(
        lambda called, _, output: 2 * output if called is module else None
    )


@pytest.mark.parametrize("where", ["parametrizations.weight", "parametrizations.weight.0"])
@pytest.mark.parametrize("replace", [forward_of_its_own, forward_hook, global_hook])
def test_a_forward_or_hook_of_others_is_honoured(replace, where):
    layer = register_negative_diagonal(nn.Linear(4, 4))
    expected = 2 * layer.weight.detach()
    handle = replace(layer.get_submodule(where))
    try:
        assert torch.equal(layer.weight, expected)
        ((_, diagonal),) = negative_diagonals(layer)
        assert torch.equal(diagonal, expected.diagonal())
        with parametrize.cached():
            assert torch.equal(layer.weight, expected)
    finally:
        if handle is not None:
            handle.remove()


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self):
        return 2 * self.inner()


def test_a_list_within_a_wrapper_is_honoured():
    layer = register_negative_diagonal(nn.Linear(4, 4))
    expected = 2 * layer.weight.detach()
    layer.parametrizations["weight"] = Doubled(layer.parametrizations["weight"])
    assert torch.equal(layer.weight, expected)


OFFLOADED = {
    "cpu": lambda accelerate, model, _: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda accelerate, model, path: accelerate.disk_offload(
        model, str(path), execution_device="cpu"
    ),
    "dispatched": lambda accelerate, model, path: accelerate.dispatch_model(
        model, {"0": "cpu", "1": "cpu", "2": "disk"}, main_device="cpu", offload_dir=str(path)
    ),
}


@pytest.mark.slow
@pytest.mark.integration("accelerate")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("offload", OFFLOADED.values(), ids=OFFLOADED)
def test_offloaded_weights_are_used(offload, tmp_path):
    import accelerate

    model = register_negative_diagonal(stock(), "*.weight")
    expected = copy.deepcopy(model)
    x = torch.ones(2, 4)
    offload(accelerate, model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
        for (_, found), (_, diagonal) in zip(
            negative_diagonals(model), negative_diagonals(expected), strict=True
        ):
            torch.testing.assert_close(found, diagonal)
