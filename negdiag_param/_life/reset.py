"""``reset_parameters`` of a registered module: as its class does it, then mapped back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from negdiag_param._life import lookup
from negdiag_param._life.assign import silent_writes
from negdiag_param._torch_private import own_buffers, own_modules, own_parameters

METHODS = ("reset_parameters", "_reset_parameters")


def resetting(base: type[nn.Module], method: str) -> Callable[[nn.Module], None]:
    """The method of ``base``, so that it reaches registered tensors too."""

    def reset(self: nn.Module) -> None:
        """As the class does it without the parametrization, then mapped back."""
        with _restored_on_failure(self):
            values = _reset_values(self, base, method)
            writes = [silent_writes(self, name, value) for name, value in values.items()]
        for write in chain(*writes):
            write.carry_out()

    reset.__name__ = method
    return reset


@contextmanager
def _restored_on_failure(module: nn.Module) -> Iterator[None]:
    """Undoes what was written to the tensors of ``module``, if the block raises."""
    tensors = [t for t in chain(module.parameters(), module.buffers()) if not is_lazy(t)]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except Exception:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        raise


def _reset_values(module: nn.Module, base: type[nn.Module], method: str) -> dict[str, Tensor]:
    """Runs a reset with plain tensors in place of our lists, and returns what it made of them."""
    mine = lookup.ours(module)
    if not mine:
        getattr(base, method)(module)
        return {}
    holder = module.get_submodule("parametrizations")
    mappings: list[dict[str, Any]]
    mappings = [own_modules(holder), own_parameters(module), own_buffers(module)]
    saved = [dict(mapping) for mapping in mappings]
    values: dict[str, Tensor] = {}
    try:
        for name in mine:
            values[name] = plain = getattr(module, name).detach().clone()
            if isinstance(lookup.originals(module, name)[0], nn.Parameter):
                values[name] = own_parameters(module)[name] = nn.Parameter(plain)
            else:
                own_buffers(module)[name] = plain
        lookup.sort(own_parameters(module), lookup.first_order(module))
        for name in mine:
            del own_modules(holder)[name]
        getattr(base, method)(module)
    finally:
        for mapping, content in zip(mappings, saved, strict=True):
            mapping.clear()
            mapping.update(content)
    return {name: value.detach() for name, value in values.items()}
