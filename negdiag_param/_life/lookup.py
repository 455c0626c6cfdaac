"""Reads PyTorch's lists of parametrizations: the module's own, never those of a wrapped one."""

from collections.abc import Iterable, MutableMapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._torch_private import own_buffers, own_modules, own_parameters

V = TypeVar("V")


def lists(module: nn.Module) -> dict[str, nn.Module]:
    """The lists of parametrizations by tensor name. Something may have wrapped a list."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    holder = own_modules(module).get("parametrizations")
    if not isinstance(holder, nn.ModuleDict):
        return {}
    return {name: found for name, found in own_modules(holder).items() if found is not None}


def find(module: nn.Module, tensor_name: str) -> NegativeDiagonal | None:
    """Our parametrization of the tensor, if it has one."""
    found = lists(module).get(tensor_name)
    if not isinstance(found, ParametrizationList):
        return None
    return next((p for p in found.children() if isinstance(p, NegativeDiagonal)), None)


def ours(module: nn.Module) -> dict[str, NegativeDiagonal]:
    """The tensors of ``module`` itself that carry our parametrization."""
    found = {name: find(module, name) for name in lists(module)}
    return {name: parametrization for name, parametrization in found.items() if parametrization}


def is_alone(module: nn.Module, tensor_name: str) -> bool:
    """Whether the tensor carries just one parametrization."""
    return len(own_modules(lists(module)[tensor_name])) == 1


def originals(module: nn.Module, tensor_name: str) -> list[Tensor]:
    """The tensors that the parametrized tensor is computed from."""
    source = lists(module)[tensor_name]
    found = [*source.parameters(recurse=False), *source.buffers(recurse=False)]
    # FullyShardedDataParallel leaves a view of its flat parameter, which is neither.
    return found or [source.original]  # type: ignore[list-item]


def stored(module: nn.Module, tensor_name: str) -> list[Tensor]:
    """The originals of the tensor, or the tensor itself if it is not parametrized."""
    if tensor_name in lists(module):
        return originals(module, tensor_name)
    return [getattr(module, tensor_name)]


def own_tensors(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters and buffers of ``module`` itself, registered ones in place."""
    return first_order(module) or (*own_parameters(module), *own_buffers(module))


def first_order(module: nn.Module) -> tuple[str, ...]:
    """The same as the first registration on ``module`` saw it; empty if nothing is registered."""
    orders = (parametrization.record.order for parametrization in ours(module).values())
    return next(filter(None, orders), ())


def joined(prefix: str, name: str) -> str:
    """A dotted name."""
    return f"{prefix}.{name}" if prefix else name


def sort(mapping: MutableMapping[str, V], order: Iterable[str]) -> None:
    """Sorts a dict in place as it was before registration moved entries out of it."""
    place = {name: i for i, name in enumerate(order)}
    items = sorted(mapping.items(), key=lambda item: place.get(item[0], len(place)))
    mapping.clear()
    mapping.update(items)
