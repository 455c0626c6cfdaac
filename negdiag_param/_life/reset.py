"""``reset_parameters`` of a registered module: as its class does it, then mapped back."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from negdiag_param._life import lookup
from negdiag_param._life.assign import carry_out, kept, writes
from negdiag_param._private import own_buffers, own_modules, own_parameters

METHODS = ("reset_parameters", "_reset_parameters")


def resetting(base: type[nn.Module], method: str) -> Callable[..., Any]:
    """The method of ``base``, so that it reaches registered tensors too."""

    def reset(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = (*own_parameters(self).values(), *own_buffers(self).values())
        with kept(tensor for tensor in own if tensor is not None and not is_lazy(tensor)):
            act = partial(getattr(base, method), self, *args, **kwargs)
            values, result = _reset_values(self, act)
            # Half of a default initialisation is positive, so it is reflected under every policy.
            changes = [writes(self, name, value, "reflect") for name, value in values.items()]
            carry_out(chain(*changes))
        return result

    reset.__name__ = method
    return reset


def _reset_values(module: nn.Module, act: Callable[[], Any]) -> tuple[dict[str, Tensor], Any]:
    """What ``act`` makes of plain tensors in place of our lists, and what it returns."""
    holder = own_modules(module).get("parametrizations") or nn.Module()
    mappings: Any = own_modules(holder), own_parameters(module), own_buffers(module)
    saved = [dict(mapping) for mapping in mappings]
    order, mine = lookup.own_tensors(module), lookup.ours(module)
    try:
        for name in mine:
            plain = getattr(module, name).detach().clone()
            if isinstance(lookup.originals(module, name)[0], nn.Parameter):
                own_parameters(module)[name] = nn.Parameter(plain)
            else:
                own_buffers(module)[name] = plain
        lookup.sort(own_parameters(module), order)
        for name in mine:
            del own_modules(holder)[name]
        result = act()
        return {name: getattr(module, name).detach() for name in mine}, result
    finally:
        for mapping, content in zip(mappings, saved, strict=True):
            mapping.clear()
            mapping.update(content)
