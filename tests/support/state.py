"""All there is to a module, to be compared before and after."""

from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from negdiag_param import NegativeDiagonal


@dataclass(frozen=True, eq=False)
class Itself:
    """Equal to nothing but the same object."""

    thing: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.thing is self.thing

    __hash__ = None


def state_of(module: nn.Module) -> dict[str, Any]:
    """Every attribute of every module: bits, storages, strides, order, hooks, identities."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        attributes = dict(vars(part))
        if isinstance(part, NegativeDiagonal):
            attributes["cache"] = None  # which may be dropped at any time
        if "recent" in attributes:
            attributes["recent"] = None  # references to caches
        found[path] = [Itself(part), type(part), part.training, *attributes]
        found |= {f"{path}.{key}": _seen(value) for key, value in attributes.items()}
    return found


def _seen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, dict):
        return [(key, _seen(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_seen(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return set(value)
    if is_dataclass(value) or isinstance(value, (str, int, float, type(None))):
        return value
    return Itself(value)


def _tensor(tensor: Tensor) -> list[Any]:
    grad = tensor.grad if tensor.is_leaf else None
    kept = [Itself(tensor), type(tensor), tensor.requires_grad, Itself(grad)]
    if is_lazy(tensor):
        return kept
    if tensor.is_nested:
        return [*kept, *map(_tensor_bits, tensor.unbind())]
    return [*kept, tensor.dtype, tensor.device, tensor.layout, tensor.shape, *_tensor_bits(tensor)]


def _tensor_bits(tensor: Tensor) -> list[Any]:
    tensor, place = tensor.detach(), []
    if tensor.is_meta:
        return []
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    else:
        place = [tensor.stride(), tensor.data_ptr()]
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return [*place, tensor.resolve_neg().reshape(-1).contiguous().view(torch.uint8).tolist()]
