"""Finds parametrizations and originals: those of the module itself, not of one that it wraps."""

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._private import own_buffers, own_modules, own_parameters


def lists(module: nn.Module) -> dict[str, nn.Module]:
    """PyTorch's lists of parametrizations by tensor name. A list may be within a wrapper."""
    holder = None
    if not isinstance(module, torch.jit.ScriptModule):
        holder = own_modules(module).get("parametrizations")
    if not isinstance(holder, nn.ModuleDict):
        return {}
    return {name: found for name, found in own_modules(holder).items() if found is not None}


def ours(module: nn.Module) -> dict[str, NegativeDiagonal]:
    """The tensors of ``module`` itself that carry our parametrization."""
    return {
        name: parametrization
        for name, found in lists(module).items()
        if isinstance(found, ParametrizationList)
        for parametrization in found.children()
        if isinstance(parametrization, NegativeDiagonal)
    }


def is_alone(module: nn.Module, tensor_name: str) -> bool:
    """Whether the tensor carries just one parametrization."""
    return len(own_modules(lists(module)[tensor_name])) == 1


def originals(module: nn.Module, tensor_name: str) -> list[Tensor]:
    """The tensors that the parametrized tensor is computed from."""
    return [*named_originals(module, tensor_name).values()]


def named_originals(module: nn.Module, tensor_name: str) -> dict[str, Tensor]:
    """The originals by their names in the list."""
    source = lists(module)[tensor_name]
    named = {**own_parameters(source), **own_buffers(source)}
    # Profilers leave tensors of their own on the list. FullyShardedDataParallel leaves a view of
    # its flat parameter, which is neither a parameter nor a buffer.
    found = {k: v for k, v in named.items() if k.startswith("original") and v is not None}
    return found or {"original": source.original}  # type: ignore[dict-item]


def own_tensors(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors of ``module`` itself, in their order before any registration."""
    orders = (parametrization.record.order for parametrization in ours(module).values())
    return next(filter(None, orders), (*own_parameters(module), *own_buffers(module)))


def sort(mapping: MutableMapping[str, Any], order: Iterable[str]) -> None:
    """Sorts a dict in place as it was before registration moved entries out of it."""
    place = {name: i for i, name in enumerate(order)}
    items = sorted(mapping.items(), key=lambda item: place.get(item[0], len(place)))
    mapping.clear()
    mapping.update(items)
