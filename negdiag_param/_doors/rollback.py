"""Puts modules back as they were."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param._life import lookup
from negdiag_param._life.attachment import give_data
from negdiag_param._ranks.shards import is_sharded
from negdiag_param._torch_private import (
    non_persistent_buffers,
    own_buffers,
    own_modules,
    own_parameters,
)


@contextmanager
def restored_on_failure(owners: Iterable[nn.Module]) -> Iterator[None]:
    """Puts the modules back if the block fails: class, tensors, values, submodules."""
    undo = [_undo(owner) for owner in {id(owner): owner for owner in owners}.values()]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def _undo(owner: nn.Module) -> Callable[[], None]:
    cls = owner.__class__
    modules = [owner, *lookup.lists(owner).values()]
    holder = own_modules(owner).get("parametrizations")
    if holder is not None:
        modules.append(holder)
    contents: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (mapping, dict(mapping))
        for module in modules
        for mapping in (own_parameters(module), own_buffers(module), own_modules(module))
    ]
    values = [
        (tensor, _backup(tensor, copied=module is not owner))
        for module in modules
        for tensor in (*own_parameters(module).values(), *own_buffers(module).values())
        if tensor is not None and not torch.nn.parameter.is_lazy(tensor)
    ]

    volatile = set(non_persistent_buffers(owner))

    def restore() -> None:
        owner.__class__ = cls
        non_persistent_buffers(owner).update(volatile)
        for mapping, content in contents:
            mapping.clear()
            mapping.update(content)
        with torch.no_grad():
            for tensor, backup in values:
                _restore(tensor, backup)

    return restore


def _backup(tensor: Tensor, copied: bool) -> tuple[Tensor, bool]:
    # Registering gives a plain tensor another storage, and the old one stays as it was. Only
    # what has been registered before is written in place.
    copied = copied or is_sharded(tensor)
    return tensor.detach().clone() if copied else tensor.detach(), copied


def _restore(tensor: Tensor, backup: tuple[Tensor, bool]) -> None:
    value, copied = backup
    if copied and tensor.shape == value.shape:
        tensor.copy_(value)
    elif tensor.data_ptr() != value.data_ptr():
        give_data(tensor, value)
