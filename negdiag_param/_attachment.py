"""What a module gets from the helper beyond ``torch.nn.utils.parametrize``.

``parametrize`` swaps the class of a module for one with a property per parametrized tensor, and
deep copies share that class with their source. Here every instance has a class of its own, and
with it copies and pickles that work, checked assignment, and a ``reset_parameters`` that counts.
Removing the last parametrization gives the module its first class back, and all of this is gone.
"""

import copy
import copyreg
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import _private, _sharded
from negdiag_param._feasible import Infeasible
from negdiag_param._parametrizations import NegativeDiagonal
from negdiag_param._snapshot import Snapshot

# torch.fx replaces this while it traces, and then it has to see every module call.
_MODULE_CALL = nn.Module.__call__
_RESETS = ("reset_parameters", "_reset_parameters")


def attach(module: nn.Module) -> None:
    """Gives the parametrized ``module`` a class of its own."""
    base = parametrize.type_before_parametrizations(module)
    module.__class__ = _own_class(base, list(chains(module)))


def chain(module: nn.Module, tensor_name: str) -> Any:
    """The list of parametrizations on the tensor."""
    return chains(module)[tensor_name]


def stored(module: nn.Module, tensor_name: str) -> Tensor:
    """The tensor, or the first one that it is computed from."""
    if parametrize.is_parametrized(module, tensor_name):
        return originals(module, tensor_name)[0]
    return getattr(module, tensor_name)  # type: ignore[no-any-return]


def find(module: nn.Module, tensor_name: str) -> NegativeDiagonal | None:
    """Our parametrization of the tensor, if it has one."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    for parametrization in chains(module)[tensor_name].children():
        if isinstance(parametrization, NegativeDiagonal):
            return parametrization
    return None


def ours(module: nn.Module) -> dict[str, NegativeDiagonal]:
    """The tensors of ``module`` itself that carry our parametrization."""
    if not parametrize.is_parametrized(module):
        return {}
    found = {name: find(module, name) for name in chains(module)}
    return {name: parametrization for name, parametrization in found.items() if parametrization}


def originals(module: nn.Module, tensor_name: str) -> list[Tensor]:
    """The tensors that the parametrized tensor is computed from."""
    source = chains(module)[tensor_name]
    return list(source.parameters(recurse=False)) + list(source.buffers(recurse=False))


def assign_silently(module: nn.Module, tensor_name: str, value: Tensor) -> None:
    """As a registration does it: reflects infeasible entries without a warning."""
    parametrization = find(module, tensor_name)
    assert parametrization is not None
    assign(module, tensor_name, value, parametrization.silently)


def assign(
    module: nn.Module, tensor_name: str, value: Tensor, infeasible: Infeasible | None = None
) -> None:
    """Sets the originals so that the tensor is ``value``; changes nothing if that cannot be.

    The originals keep their storage and strides.

    Raises:
        RuntimeError: under a ``torch.func`` transform.
        ValueError: if shape, dtype or device differ, or a parametrization has no right_inverse.
    """
    if _private.function_transforms_active():
        raise RuntimeError(
            f"{tensor_name}: expected no assignment inside a torch.func transform; give "
            f"functional_call the key parametrizations.{tensor_name}.original instead"
        )
    parametrizations = chains(module)[tensor_name]
    targets = originals(module, tensor_name)
    for target in targets:
        _sharded.check_assignable(parametrizations, target, tensor_name)
    if isinstance(value, Tensor) and len(targets) == 1:
        value = _sharded.aligned(value, targets[0])
        expected, found = _summary(targets[0]), _summary(value)
        if expected != found:
            raise ValueError(f"{tensor_name}: expected a tensor of {expected}, got {found}")
    inverse: Any = value
    with torch.no_grad():
        for parametrization in reversed(list(parametrizations.children())):
            if isinstance(parametrization, NegativeDiagonal):
                policy = infeasible or parametrization.infeasible
                inverse = parametrization.inverted(inverse, policy)
            elif hasattr(parametrization, "right_inverse"):
                inverse = parametrization.right_inverse(inverse)
            else:
                raise ValueError(
                    f"{tensor_name}: expected parametrizations with a right_inverse, "
                    f"got {type(parametrization).__name__}"
                )
        sources = [inverse] if isinstance(inverse, Tensor) else list(inverse)
        if [source.shape for source in sources] != [target.shape for target in targets]:
            raise ValueError(
                f"{tensor_name}: expected originals of shapes {[tuple(t.shape) for t in targets]}, "
                f"got {[tuple(s.shape) for s in sources]}"
            )
        for target, source in zip(targets, sources, strict=True):
            target.copy_(_sharded.like(source, target))


def _summary(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"


def chains(module: nn.Module) -> Any:
    """The lists of parametrizations of a parametrized module, by tensor name."""
    return module._modules["parametrizations"]


def _own_class(base: type[nn.Module], tensor_names: Iterable[str]) -> type[nn.Module]:
    """A subclass of ``base`` for one instance, with a property for each parametrized tensor."""

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        _memoize_derived_tensors(self, memo)
        own = _own_class(base, list(chains(self)))
        if hasattr(base, "__deepcopy__"):
            replica: nn.Module = base.__deepcopy__(self, memo)
            replica.__class__ = own
            return replica
        replica = own.__new__(own)
        memo[id(self)] = replica
        replica.__dict__ = copy.deepcopy(self.__dict__, memo)
        for slot in copyreg._slotnames(base):  # type: ignore[attr-defined]
            if hasattr(self, slot):
                setattr(replica, slot, copy.deepcopy(getattr(self, slot), memo))
        return replica

    def __reduce_ex__(self: nn.Module, protocol: object) -> tuple[Any, ...]:
        with torch.no_grad():
            getstate = getattr(base, "__getstate__", None)
            state = getstate(self) if getstate else self.__dict__.copy()
        return _revive, (base, list(chains(self))), state

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        for tensor_name in ours(self):
            _sharded.check_parallelizable(param, originals(self, tensor_name), self)
        # `layer.weight = nn.Parameter(W)` comes here before it could reach the property.
        if param is not None and parametrize.is_parametrized(self, name):
            assign(self, name, param.detach())
        else:
            base.register_parameter(self, name, param)

    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": __reduce_ex__,
        "register_parameter": register_parameter,
    }
    namespace.update((name, _reset(base, name)) for name in _RESETS if hasattr(base, name))
    namespace.update((name, _tensor_property(name)) for name in tensor_names)
    return type(f"Parametrized{base.__name__}", (base,), namespace)


def _revive(base: type[nn.Module], tensor_names: list[str]) -> nn.Module:
    cls = _own_class(base, tensor_names)
    return cls.__new__(cls)


def _memoize_derived_tensors(module: nn.Module, memo: dict[int, Any]) -> None:
    # RNNs keep the weights of their last forward pass. Those are not leaves, which deepcopy
    # refuses; a copy gets their values, and its next forward pass replaces them.
    for value in vars(module).values():
        for item in value if isinstance(value, list) else ():
            if isinstance(item, Tensor) and not item.is_leaf:
                memo[id(item)] = item.detach().clone()


def _tensor_property(tensor_name: str) -> property:
    def get(self: nn.Module) -> Tensor:
        lists = self._modules.get("parametrizations")
        if lists is None:
            # An instance made by `type(self)(...)` has plain tensors: nn.Module looks them up.
            raise AttributeError(tensor_name)
        chain: Any = lists._modules[tensor_name]
        if not torch.compiler.is_compiling():
            cache = _private.cached_block()
            if cache is not None:
                return _cached(cache, chain, tensor_name)
            if nn.Module.__call__ is _MODULE_CALL:
                return _evaluated(chain)
        return chain()  # type: ignore[no-any-return]

    def set_(self: nn.Module, value: Tensor) -> None:
        assign(self, tensor_name, value)

    return property(get, set_)


def _evaluated(chain: nn.Module) -> Tensor:
    """``chain()``, without the detours of two module calls where nobody could notice."""
    parametrizations = chain._modules
    only = parametrizations["0"]
    if (
        len(parametrizations) == 1
        and isinstance(only, NegativeDiagonal)
        and not _private.has_hooks(chain)
        and not _private.has_hooks(only)
    ):
        original = chain._parameters.get("original")
        return only.forward(chain._buffers["original"] if original is None else original)  # type: ignore[arg-type]
    return chain()  # type: ignore[no-any-return]


def _cached(cache: Any, chain: Any, tensor_name: str) -> Tensor:
    """The tensor under ``parametrize.cached()``.

    The key is the chain of this very instance, so copies do not share an entry; and an entry
    that was made without gradients, or before the original changed, is made again.

    Raises:
        RuntimeError: while tracing, as in PyTorch.
    """
    key = (chain, tensor_name)
    entry = cache.get(key)
    with_grad = torch.is_grad_enabled()
    if isinstance(entry, Snapshot) and (entry.weight.requires_grad or not with_grad):
        # The short way for every reading but the first.
        original = chain._parameters.get("original")
        if original is not None and entry.is_fresh(original):
            return entry.weight
    if torch.jit.is_tracing():
        raise RuntimeError("Cannot trace a model while caching parametrizations.")
    if (
        _private.function_transforms_active()
        or torch.compiler.is_exporting()
        or _sharded.is_in_motion(chain)
    ):
        return chain()  # type: ignore[no-any-return]
    if not chain.is_tensor or not Snapshot.supports(chain.original):
        if not isinstance(entry, Tensor) or (with_grad and not entry.requires_grad):
            entry = cache[key] = chain()
        return entry  # type: ignore[no-any-return]
    original = chain.original
    if (
        not isinstance(entry, Snapshot)
        or not entry.is_fresh(original)
        or (with_grad and original.requires_grad and not entry.weight.requires_grad)
    ):
        entry = Snapshot(original)
        # Tensors made in inference mode have no version counter.
        with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
            entry.keep(chain())
        cache[key] = entry
    return entry.weight


def _reset(base: type[nn.Module], method: str) -> Any:
    def reset(self: nn.Module) -> None:
        """As the class does it without the parametrization, then mapped back."""
        if not parametrize.is_parametrized(self):
            # An instance made by `type(self)(...)`, as some modules copy themselves.
            getattr(base, method)(self)
            return
        for name, value in _reset_values(self, base, method).items():
            assign_silently(self, name, value)

    return reset


def _reset_values(module: nn.Module, base: type[nn.Module], method: str) -> dict[str, Tensor]:
    """Runs a reset method with plain parameters in place of ours, and returns what it made."""
    lists, parameters, buffers = chains(module)._modules, module._parameters, module._buffers
    saved = dict(lists), dict(parameters), dict(buffers), module.__class__
    mine = ours(module)
    values: dict[str, Tensor] = {}
    try:
        for name in mine:
            values[name] = plain = getattr(module, name).detach().clone()
            is_parameter = isinstance(originals(module, name)[0], nn.Parameter)
            if is_parameter:
                values[name] = parameters[name] = nn.Parameter(plain)
            else:
                buffers[name] = plain
        in_order(parameters, *(p.order for p in mine.values()))
        for name in mine:
            del lists[name]
        module.__class__ = _own_class(base, list(lists)) if lists else base
        getattr(base, method)(module)
    finally:
        for mapping, content in zip((lists, parameters, buffers), saved[:3], strict=True):
            mapping.clear()
            mapping.update(content)
        module.__class__ = saved[3]
    return {name: value.detach() for name, value in values.items()}


def in_order(mapping: Any, *orders: Iterable[str]) -> None:
    """Sorts a dict in place as it was before registration moved entries out of it."""
    order = {name: i for names in orders for i, name in enumerate(names)}
    items = sorted(mapping.items(), key=lambda item: order.get(item[0], len(order)))
    mapping.clear()
    mapping.update(items)
