"""Names of modules within modules that others have wrapped."""

from collections.abc import Iterator

from torch import nn

from negdiag_param._life.lookup import joined, own_tensors
from negdiag_param._torch_private import own_buffers, own_modules, own_parameters


def named_owners(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Every module once, with its name and its path.

    The path is that of ``named_modules``. The name leaves out what wrappers add that pass
    attributes through, such as the ``_orig_mod`` of ``torch.compile``: it is the wrapped
    model's own.
    """
    names: dict[str, str] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        above, _, child = path.rpartition(".")
        if not path:
            names[path] = ""
        elif _sees_through(modules[above], module):
            names[path] = names[above]
        else:
            names[path] = joined(names[above], child)
        yield names[path], path, module


def _sees_through(wrapper: nn.Module, wrapped: nn.Module) -> bool:
    """Whether ``wrapper`` passes the attributes of ``wrapped`` through as if they were its own."""
    if type(wrapper).__getattr__ is nn.Module.__getattr__:
        return False
    if not set(own_tensors(wrapper)).isdisjoint(own_tensors(wrapped)):
        return False  # the wrapper's own hide them
    # The first entry that the wrapper has none of the same name for; a wrapper of a wrapper has
    # it further down.
    for module in wrapped.modules():
        for mapping_of in (own_parameters, own_buffers, own_modules):
            for name, value in mapping_of(module).items():
                if value is not None and name not in mapping_of(wrapper):
                    return getattr(wrapper, name, None) is value
    return False
