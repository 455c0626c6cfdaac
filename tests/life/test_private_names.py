"""PyTorch's private names, gone one by one: what is promised happens, and everything else works."""

import ast
import copy
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import _private as private
from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)

Monkeypatch = pytest.MonkeyPatch


class Gone:
    """A name of ``nn.Module`` or ``Tensor`` that PyTorch itself still finds."""

    def __init__(self, name: str, inherited: Any = None) -> None:
        self.name, self.inherited = name, inherited

    def __get__(self, owner: Any, cls: type) -> Any:
        if sys._getframe(1).f_globals["__name__"] == private.__name__:
            raise AttributeError(self.name)
        if owner is None or self.name not in vars(owner):
            return self.inherited.__get__(owner, cls) if self.inherited else None
        return vars(owner)[self.name]

    def __set__(self, owner: Any, value: Any) -> None:
        vars(owner)[self.name] = value


class Without:
    """A module without one of its names."""

    def __init__(self, module: Any, name: str, **others: Any) -> None:
        self._module, self._name = module, name
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._module, name)


Hide = Callable[[Monkeypatch], None]


def without(name: str, owner: type = nn.Module) -> Hide:
    gone = Gone(name, inspect.getattr_static(owner, name, None))
    return lambda patch: patch.setattr(owner, name, gone, raising=False)


def without_of(module: Any, name: str, attribute: str, **others: Any) -> Hide:
    """Where the module is an attribute of the one that reads private names."""
    return lambda patch: patch.setattr(private, attribute, Without(module, name, **others))


def without_c(name: str) -> Hide:
    return without_of(torch, "", "torch", _C=Without(torch._C, name))


CALLS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
EVERYWHERE = [f"_global{name}" for name in CALLS]
OWN = ("_non_persistent_buffers_set", "_load_from_state_dict", *CALLS, "_compiled_call_impl")
HIDDEN: dict[str, Hide] = {
    **{name: without(name) for name in OWN},
    **{name: without_of(private.nn_module, name, "nn_module") for name in EVERYWHERE},
    **{name: without_of(parametrize, name, "parametrize") for name in ("_cache", "_cache_enabled")},
    "_version": without("_version", Tensor),
    "_are_functorch_transforms_active": without_c("_are_functorch_transforms_active"),
    "_len_torch_dispatch_stack": without_c("_len_torch_dispatch_stack"),
}
# What is promised when a name goes.
PROMISES = {
    **dict.fromkeys(HIDDEN, "small layers are slower"),
    "_cache": "recomputes instead of caching",
    "_cache_enabled": "recomputes instead of caching",
    "_version": "computed anew instead of cached",
    "_are_functorch_transforms_active": "eager mode is slower",
    "_len_torch_dispatch_stack": "computed anew, not cached",
    "_non_persistent_buffers_set": "registered buffers become persistent",
    "_load_from_state_dict": "checkpoints from before registration do not load",
}
# Not missed: notes that others leave on a state dict or a module, and a flag that has a function.
NOTES = {"_metadata", "_EXTRA_STATE", "_is_fsdp_managed_module", "_distribute_module_applied"}
NOTES |= {"_get_sequence_number_for_group", "_pg_map"}
NOTES |= {"_is_exporting_flag", "_apply", "_get_tracing_state"}
FOUNDATIONS = {"_modules", "_parameters", "_buffers", "_C"}


def life() -> list[Tensor]:
    """All that a registered layer lives through but for loading a plain checkpoint."""

    class Linear(nn.Linear):
        """Of a class that nothing was registered on yet."""

    torch.manual_seed(0)
    layer, seen = Linear(3, 3), []
    register_negative_diagonal(layer, cache_in_eval=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        sum((entries - 1).square().sum() for _, entries in negative_diagonals(layer)).backward()
        optimizer.step()
        seen.append(layer(torch.ones(2, 3)))
        with torch.no_grad(), parametrize.cached():
            seen += [layer.weight, layer.weight, layer.eval()(torch.ones(1, 3))]
        with torch.no_grad():
            seen += [layer.weight, layer.train().weight]
    with torch.no_grad():
        seen.append(layer.eval().weight)
        layer.parametrizations.weight.original.add_(0.5)
        seen.append(layer.weight)
    layer.weight = -torch.ones(3, 3)
    init_(layer, "weight", nn.init.constant_, -3.0)
    other = copy.deepcopy(layer)
    other.weight = -2 * torch.ones(3, 3)
    layer.load_state_dict(other.state_dict())
    seen += [layer.weight, *plain_state_dict(layer).values(), *torch.func.vmap(layer)(seen[1])]
    return [*seen, remove_negative_diagonal(layer).weight]


def loads_plain_checkpoints() -> bool:
    class Linear(nn.Linear):
        pass

    layer = register_negative_diagonal(Linear(3, 3))
    missing = layer.load_state_dict(
        remove_negative_diagonal(copy.deepcopy(layer)).state_dict(), strict=False
    )
    return not missing.missing_keys


def keeps_buffers_out() -> bool:
    module = nn.Module()
    module.register_buffer("weight", -torch.ones(3, 3), persistent=False)
    return not register_negative_diagonal(module).state_dict()


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_promised_happens(name, monkeypatch):
    expected, promise = life(), PROMISES[name]
    private._warn_once.cache_clear()
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        HIDDEN[name](patch)
        found = life()
        plain, out = loads_plain_checkpoints(), keeps_buffers_out()
    private._warn_once.cache_clear()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)  # slower forms round their gradients otherwise
    assert [str(warning.message) for warning in said if promise in str(warning.message)]
    assert {warning.category for warning in said} == {RuntimeWarning}
    assert len(said) == 1
    assert plain is (name != "_load_from_state_dict")
    assert out is (name != "_non_persistent_buffers_set")


def test_every_private_name_is_in_the_table():
    read = set(NOTES)
    for node in ast.walk(ast.parse(inspect.getsource(private))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            read.add(node.attr)
        if isinstance(node, ast.Constant) and re.fullmatch(r"_\w+", str(node.value)):
            read.add(node.value)
    dunders = {name for name in read if name.startswith("__")}
    assert read - dunders == {*HIDDEN, *NOTES, *FOUNDATIONS}
