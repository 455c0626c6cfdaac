"""The class of a registered module: what ``torch.nn.utils.parametrize`` injects, and more.

PyTorch gives every parametrized module a class of its own and lets deep copies share it, so that
removing a parametrization from a copy takes the property from its source, and a compiled model
knows as many classes as it has layers. Here all modules with the same base and the same
parametrized tensors share one class, which no instance can change for the others. With it come
copies and pickles that work, checked assignment, plain checkpoints, and resets that count.
Removing the last parametrization gives the module its first class back, and all of this is gone.
"""

import copyreg
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import _torch_private
from negdiag_param._callers import is_distributing
from negdiag_param._life import checkpoints, lookup, reset
from negdiag_param._life.assign import assign
from negdiag_param._life.reading import tensor_property
from negdiag_param._ranks import shards

_CLASSES: WeakValueDictionary[tuple[type, tuple[str, ...]], type[nn.Module]] = WeakValueDictionary()


class _Shared(type):
    """The class of shared classes. What PyTorch does to one is meant for a single instance."""

    def __setattr__(cls, name: str, value: object) -> None:
        # register_parametrization: its property would fail where there is no list.
        super().__setattr__(name, tensor_property(name) if isinstance(value, property) else value)

    def __delattr__(cls, name: str) -> None:
        # remove_parametrizations: the property finds no list and steps aside.
        if not isinstance(vars(cls).get(name), property):
            super().__delattr__(name)


class _NotYetDistributed:
    """Refuses a parallel style that comes after registration; an instance's own mark hides it."""

    def __get__(self, module: nn.Module | None, cls: type[nn.Module]) -> bool:
        # Others look at every attribute there is.
        if module is not None and is_distributing():
            for tensor_name in lookup.ours(module):
                if not all(map(shards.is_sharded, lookup.originals(module, tensor_name))):
                    base = parametrize.type_before_parametrizations(module)
                    raise ValueError(
                        f"expected a {base.__name__} without a negative diagonal to distribute, "
                        f"got a registered one; the order is {shards.ORDER}"
                    )
        return False


def attach(module: nn.Module) -> None:
    """Gives ``module`` the class for its parametrized tensors; the first one, if there are none."""
    base = parametrize.type_before_parametrizations(module)
    names = lookup.lists(module)
    module.__class__ = own_class(base, names) if names else base


def own_class(base: type[nn.Module], tensor_names: Iterable[str]) -> type[nn.Module]:
    """A subclass of ``base`` with a property for each parametrized tensor."""
    names = tuple(sorted(tensor_names))
    found = _CLASSES.get((base, names))
    if found is None:
        found = _CLASSES[base, names] = _made(base, names)
    return found


def _made(base: type[nn.Module], tensor_names: tuple[str, ...]) -> type[nn.Module]:
    slot_names = copyreg._slotnames(base)  # type: ignore[attr-defined]

    def __reduce_ex__(self: nn.Module, protocol: int) -> str | tuple[Any, ...]:
        # Both pickle and deepcopy come here.
        with torch.no_grad():
            reduced = base.__reduce_ex__(self, max(protocol, 2))
        if len(reduced) < 3:
            return reduced  # the class has its own way, without a state
        slots = {name: getattr(self, name) for name in slot_names if hasattr(self, name)}
        arguments = base, list(lookup.lists(self)), slots
        return _revive, arguments, reduced[2]

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # `layer.weight = nn.Parameter(W)` comes here before it could reach the property.
        if param is not None and name in lookup.lists(self):
            assign(self, name, param)
        else:
            base.register_parameter(self, name, param)

    def __prepare_scriptable__(self: nn.Module) -> nn.Module:
        raise TypeError(
            f"expected a module without a negative diagonal for torch.jit.script, got "
            f"{type(self).__name__}; script a baked copy, which "
            f"remove_negative_diagonal(copy.deepcopy(model), ...) gives, or use torch.export"
        )

    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        _torch_private.DISTRIBUTED_MARK: _NotYetDistributed(),
        "__prepare_scriptable__": __prepare_scriptable__,
        "__reduce_ex__": __reduce_ex__,
        "register_parameter": register_parameter,
    }
    loading = _torch_private.loading_method(base)
    if loading is not None:
        namespace[loading.__name__] = checkpoints.translating(loading)
    for name in filter(partial(hasattr, base), reset.METHODS):
        namespace[name] = reset.resetting(base, name)
    namespace |= {name: tensor_property(name) for name in tensor_names}
    return _metaclass(base)(f"Parametrized{base.__name__}", (base,), namespace)


def _metaclass(base: type[nn.Module]) -> Callable[..., type[nn.Module]]:
    """One that goes along with that of ``base``, such as ``ABCMeta``."""
    found = _Shared if type(base) is type else type("_Shared", (_Shared, type(base)), {})
    return cast(Callable[..., type[nn.Module]], found)


def _revive(base: type[nn.Module], tensor_names: list[str], slots: dict[str, Any]) -> nn.Module:
    cls = own_class(base, tensor_names)
    module = cls.__new__(cls)
    for name, value in slots.items():
        object.__setattr__(module, name, value)
    return module
