"""The property behind a registered tensor."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from negdiag_param import _torch_private
from negdiag_param._life.assign import assign
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.cache import WeightCache
from negdiag_param._torch_private import own_buffers, own_modules, own_parameters


def tensor_property(tensor_name: str) -> property:
    """Computes the tensor where the instance has a list for it; elsewhere it is not there.

    Several instances share a class, and not all of them need to have the tensor parametrized.
    """

    def get(self: nn.Module) -> Tensor:
        holder: Any = own_modules(self).get("parametrizations")
        found = None if holder is None else own_modules(holder).get(tensor_name)
        if found is None:
            return _plain(self, tensor_name)  # type: ignore[no-any-return]
        if not torch.compiler.is_compiling():
            block = _torch_private.cached_block()
            return _evaluated(found) if block is None else _read_in(block, found, tensor_name)
        return found()  # type: ignore[no-any-return]

    def set_(self: nn.Module, value: Tensor) -> None:
        holder: Any = own_modules(self).get("parametrizations")
        if holder is not None and tensor_name in holder:
            assign(self, tensor_name, value)
        else:
            vars(self)[tensor_name] = value

    return property(get, set_)


def _plain(module: nn.Module, name: str) -> Any:
    own = vars(module)
    return own[name] if name in own else nn.Module.__getattr__(module, name)


def _evaluated(found: nn.Module) -> Tensor:
    """``found()``, without the detours of two module calls where nobody could notice."""
    parametrizations = own_modules(found)
    only = parametrizations.get("0")
    if (
        len(parametrizations) == 1
        and type(found) is ParametrizationList
        and isinstance(only, NegativeDiagonal)
        and _torch_private.is_just_forward(found)
        and _torch_private.is_just_forward(only)
    ):
        original: Any = own_parameters(found).get("original")
        if original is None:
            original = own_buffers(found).get("original")
        if original is not None:
            return only.forward(original)
    return found()  # type: ignore[no-any-return]


def _read_in(block: MutableMapping[Any, Any], found: nn.Module, tensor_name: str) -> Tensor:
    """The tensor within ``parametrize.cached()``.

    The key is the list of this very instance, so copies do not share an entry; and an entry that
    was made without gradients, or before an original changed, is made again.

    Raises:
        RuntimeError: while tracing, as in PyTorch.
    """
    if torch.jit.is_tracing():
        raise RuntimeError("Cannot trace a model while caching parametrizations.")
    cache = block.get((found, tensor_name))
    if cache is None:
        cache = block.setdefault((found, tensor_name), WeightCache())
    return cache.read(found, [*found.parameters(), *found.buffers()], found)  # type: ignore[no-any-return]
