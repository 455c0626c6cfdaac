"""The class of a registered module: what ``torch.nn.utils.parametrize`` injects, and more.

PyTorch gives every parametrized module a class of its own, which its deep copies share, so that
what it does to the class of one module happens to the copies too. Here all modules with the same
base and parametrized tensors share a class. PyTorch edits it immediately before the module's
dictionary of parametrizations, which notices, mends the class, and gives the module another one.
"""

import copyreg
import io
import pickle
from collections.abc import Iterable, MutableMapping
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from typing_extensions import override

from negdiag_param import _private
from negdiag_param._life import loading, lookup, reset
from negdiag_param._life.assign import assign
from negdiag_param._parametrization.cache import WeightCache
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._parametrization.steps import Links
from negdiag_param._private import asking, is_distributing
from negdiag_param._ranks import shards

_TENSORS = "__parametrized_tensors__"  # which tensors a class of ours has a property for
_CLASSES: WeakValueDictionary[tuple[type, tuple[str, ...]], type[nn.Module]] = WeakValueDictionary()


class Parametrizations(nn.ModuleDict):
    """The parametrizations of a module by tensor name, which keep the module's class up to date."""

    def __init__(self, owner: nn.Module, lists: dict[str, nn.Module]) -> None:
        super().__init__()
        self.owner = Links([owner])
        self.recent = _Recent()
        _private.own_modules(self).update(lists)

    @override
    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(key, module)
        self._update_class(key)

    @override
    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._update_class(key)

    @override
    def _get_name(self) -> str:
        return "ModuleDict"

    def _update_class(self, key: str) -> None:
        for owner in self.owner:
            cls = type(owner)
            # PyTorch has replaced or deleted the property of the shared class, or added one.
            if key in vars(cls).get(_TENSORS, ()):
                setattr(cls, key, tensor_property(cls.__bases__[0], key))
            elif key in vars(cls):
                delattr(cls, key)
            owner.__class__ = own_class(base_of(owner), lookup.lists(owner))


class _Recent(dict[str, "ref[WeightCache]"]):
    """The caches that the tensors were last read from. A copy or a pickle is empty."""

    @override
    def __reduce__(self) -> tuple[type["_Recent"], tuple[()]]:
        return _Recent, ()


class _NotYetDistributed:
    """Refuses a parallel style that comes after registration.

    An attribute of the instance, which a parallel style sets, shadows this descriptor.
    """

    def __get__(self, module: nn.Module | None, cls: type[nn.Module]) -> bool:
        # dir() and inspect.getmembers() read this too.
        if module is not None and is_distributing():
            originals = [t for name in lookup.ours(module) for t in lookup.originals(module, name)]
            if not all(map(shards.is_sharded, originals)):
                raise ValueError(
                    f"expected a {base_of(module).__name__} without a negative diagonal to "
                    f"distribute, got a registered one; the order is {shards.ORDER}"
                )
        return False


def set_lists(module: nn.Module, lists: dict[str, nn.Module]) -> None:
    """Gives ``module`` these parametrizations and a class of ours; without any, its first class."""
    module.__class__ = own_class(base_of(module), lists) if lists else base_of(module)
    if lists:
        _private.own_modules(module)["parametrizations"] = Parametrizations(module, lists)
    else:
        del _private.own_modules(module)["parametrizations"]


def base_of(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` without parametrizations."""
    cls = type(module)
    if _TENSORS in vars(cls):
        return cls.__bases__[0]
    if hasattr(cls, _TENSORS):
        return cls  # a class that somebody has derived from ours
    return parametrize.type_before_parametrizations(module)


def own_class(base: type[nn.Module], tensor_names: Iterable[str]) -> type[nn.Module]:
    """A subclass of ``base`` with a property for each parametrized tensor."""
    names = tuple(sorted(tensor_names))
    # The class is held, since the dictionary drops what nobody else holds.
    cls = _CLASSES.get((base, names)) or _made(base, names)
    return _CLASSES.setdefault((base, names), cls)


def _made(base: type[nn.Module], tensor_names: tuple[str, ...]) -> type[nn.Module]:
    def __reduce_ex__(self: nn.Module, protocol: int) -> str | tuple[Any, ...]:
        # Both pickle and deepcopy come here. The class is made anew from its base.
        lists, block = lookup.lists(self), _private.cached_block() or {}
        for found in lists.values():
            block.pop(found, None)
        with torch.no_grad():  # RNNs read their weights here, which shall have no gradients
            reduced = base.__reduce_ex__(self, max(protocol, 2))
        if isinstance(reduced, str) or len(reduced) < 3 or type(self) is not cls:
            return reduced
        make, arguments, *rest = reduced
        ours = lookup.ours(self)
        if not (all(n in ours and lookup.is_alone(self, n) for n in lists) or asking() == "copy"):
            _check_picklable(lists, rest)
        arguments = tuple(base if argument is cls else argument for argument in arguments)
        names = copyreg._slotnames(base)  # type: ignore[attr-defined]  # noqa: SLF001
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return _revive, (make, arguments, tensor_names, slots), *rest

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        # RNNs note a value in a list of their own before it can be refused, and nn.Module takes
        # a parameter for a new one before the property is asked.
        if name in tensor_names and name in lookup.lists(self):
            assign(self, name, value)
        else:
            base.__setattr__(self, name, value)

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and name in lookup.ours(self):
            assign(self, name, param)
        else:
            base.register_parameter(self, name, param)

    load = _private.loading_method(base)
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        _TENSORS: tensor_names,
        _private.DISTRIBUTED_MARK: _NotYetDistributed(),
        "__reduce_ex__": __reduce_ex__,
        "__setattr__": __setattr__,
        "register_parameter": register_parameter,
        **_private.checking_casts(base),
        **({load.__name__: loading.translating(load)} if load else {}),
        **{name: reset.resetting(base, name) for name in reset.METHODS if hasattr(base, name)},
        **{name: tensor_property(base, name) for name in tensor_names},
    }
    if issubclass(base, nn.ParameterList):
        # PyTorch would copy the computed tensors of a slice into parameters of their own.
        namespace["__getitem__"] = lambda self, index: (
            [self[i] for i in range(len(self))[index]]
            if isinstance(index, slice)
            else base.__getitem__(self, index)
        )
    if issubclass(base, nn.ParameterDict):
        namespace["copy"] = lambda self: {key: self[key] for key in self.keys()}
    make_class: Any = type(base)  # a metaclass, such as ABCMeta
    cls: type[nn.Module] = make_class(f"Parametrized{base.__name__}", (base,), namespace)
    return cls


def _check_picklable(tensor_names: Iterable[str], state: list[Any]) -> None:
    """Says what cannot be pickled; PyTorch refuses all modules with parametrizations."""

    class Trial(pickle.Pickler):
        def persistent_id(self, thing: object) -> object:
            # Tensors can be pickled, and other registered modules say so themselves.
            return "" if isinstance(thing, Tensor) or _TENSORS in vars(type(thing)) else None

    try:
        Trial(io.BytesIO()).dump(state)
    except Exception as error:
        raise RuntimeError(
            f"expected parametrizations of {', '.join(tensor_names)} that can be pickled, "
            f"got {type(error).__name__}: {error}; save state_dict() instead"
        ) from error


def _revive(
    make: Any, arguments: tuple[Any, ...], tensor_names: tuple[str, ...], slots: dict[str, Any]
) -> nn.Module:
    module: nn.Module = make(*arguments)
    for name, value in slots.items():
        object.__setattr__(module, name, value)
    module.__class__ = own_class(base_of(module), tensor_names)
    return module


def tensor_property(base: type[nn.Module], tensor_name: str) -> property:
    """Computes the tensor where the instance has a list for it; elsewhere it is a plain attribute.

    Several instances share a class, and PyTorch may take the list from one of them.
    """
    asks = _looks_up_itself(base)

    def read(self: nn.Module, compiles: bool) -> Tensor:
        holder: Any = _private.own_modules(self).get("parametrizations")
        found = None if holder is None else _private.own_modules(holder).get(tensor_name)
        if found is None:
            if tensor_name in vars(self):
                return vars(self)[tensor_name]  # type: ignore[no-any-return]
            return nn.Module.__getattr__(self, tensor_name)  # type: ignore[return-value]
        if compiles:
            return found()  # type: ignore[no-any-return]
        if asks or _looks_up_itself(type(self)):  # which may be derived from ours
            found = self.get_submodule(f"parametrizations.{tensor_name}")
        block = _private.cached_block()
        try:
            if block is None:
                return _evaluated(found, holder, tensor_name)
            return _read_in(block, self, found, holder, tensor_name)
        except AttributeError as error:
            # Python would take it for a sign that the module has no such tensor.
            raise RuntimeError(f"{tensor_name}: {type(error).__name__}: {error}") from error

    def set_(self: nn.Module, value: Tensor) -> None:
        if tensor_name in lookup.lists(self):
            assign(self, tensor_name, value)
        else:
            vars(self)[tensor_name] = value

    return property(_private.reading(tensor_name, read), set_)


def _looks_up_itself(cls: type[nn.Module]) -> bool:
    """Whether attributes are looked up in a way of the class's own, which has to be asked."""
    usual = nn.Module.__getattr__, object.__getattribute__
    return (cls.__getattr__, cls.__getattribute__) != usual


def _evaluated(found: nn.Module, holder: Parametrizations, tensor_name: str) -> Tensor:
    """``found()``, without two module calls where no hook could notice the difference."""
    parametrizations = _private.own_modules(found)
    only = parametrizations.get("0")
    if (
        len(parametrizations) == 1
        and type(found) is ParametrizationList
        and isinstance(only, NegativeDiagonal)
        and _private.is_just_forward(found)
        and _private.is_just_forward(only)
    ):
        original = _private.own_parameters(found).get("original")
        if original is not None:
            if only.cache.entry is not None:
                holder.recent[tensor_name] = ref(only.cache)
            return only.forward(original)
    return found()  # type: ignore[no-any-return]


def _read_in(
    block: MutableMapping[Any, Any],
    module: nn.Module,
    found: nn.Module,
    holder: Parametrizations,
    tensor_name: str,
) -> Tensor:
    """The tensor within ``parametrize.cached()``, computed anew once an original has changed."""
    if torch.jit.is_tracing():
        raise RuntimeError("Cannot trace a model while caching parametrizations.")
    if tensor_name not in lookup.ours(module):  # as PyTorch does it
        key = id(module), tensor_name
        return block[key] if key in block else block.setdefault(key, found())  # type: ignore[no-any-return]
    # PyTorch's key has the id of the module that a class was made for, which copies share.
    cache: WeightCache = block.setdefault(found, WeightCache())
    holder.recent[tensor_name] = ref(cache)
    return cache.read(found, [*found.parameters(), *found.buffers()], found)
