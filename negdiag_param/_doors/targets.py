"""Finds the tensors that a name, a dotted name or a pattern means."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

from negdiag_param._life import lookup
from negdiag_param._parametrization.invert import summary
from negdiag_param._private import own_buffers, own_modules, own_parameters


@dataclass(frozen=True)
class Target:
    """A parameter or buffer, or what is computed in place of one."""

    name: str  # within the module that the user gave
    path: str  # the name with those of wrappers in between, as named_modules gives it
    owner: nn.Module  # the module that holds it
    tensor_name: str  # its name there
    stored: tuple[Tensor, ...]  # what it is computed from; itself if it is not parametrized
    ours: Any  # our parametrization, None without one

    @property
    def tensor(self) -> Tensor:
        """The tensor's current value, computed at every call."""
        return getattr(self.owner, self.tensor_name)  # type: ignore[no-any-return]


def find(
    module: object, tensor_name: object, suits: Callable[[Target], object], wanted: str
) -> list[Target]:
    """The tensors of that name or, of several, those that suit; ``wanted`` is what they need."""
    module = checked(module, "module")
    if not isinstance(tensor_name, str):
        raise TypeError(f"tensor_name: expected a string, got {type(tensor_name).__name__}")
    targets = list(every(module))
    found = [t for t in targets if t.name == tensor_name]
    if not found:  # with the names of wrappers, or another name of a module that is there twice
        path, _, name = tensor_name.rpartition(".")
        owner = path and dict(module.named_modules(remove_duplicate=False)).get(path)
        found = [t for t in targets if t.owner is owner and t.tensor_name == name]
    if len(found) == 1:
        return found
    if not found:  # a pattern, which leaves buffers alone
        buffers, matches = set(map(id, module.buffers())), partial(fnmatchcase, pat=tensor_name)
        found = [t for t in targets if matches(t.name) or matches(t.path)]
        found = [t for t in found if buffers.isdisjoint(map(id, t.stored))]
    suitable = [t for t in found if suits(t)]
    if not suitable:
        names = [t.name for t in targets]
        near = difflib.get_close_matches(tensor_name, names, n=5, cutoff=0.3) or names[:5]
        what = f"tensors with {wanted}" if found else "the name of a parameter or buffer"
        raise ValueError(
            f"{tensor_name!r}: expected {what} in {type(module).__name__}, found no match; "
            f"near names: {', '.join(near) or 'none, it has no tensors'}"
        )
    return suitable


def find_registered(module: nn.Module, tensor_name: str) -> list[Target]:
    """The tensors that ``tensor_name`` means among those that carry our parametrization."""
    found = find(module, tensor_name, lambda target: target.ours is not None, "a negative diagonal")
    for target in found:
        if target.ours is None:
            raise ValueError(
                f"{target.name}: expected a tensor registered with a negative diagonal, got one "
                f"without, {summary(target.tensor)}"
            )
    return found


def checked(module: object, argument: str) -> nn.Module:
    """``module``, if it is one."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: expected an nn.Module, got {type(module).__name__}")
    return module


def every(module: nn.Module) -> Iterator[Target]:
    """Every parameter and buffer of each module, under its name before parametrization."""
    for name, path, owner in named_owners(module):
        if "parametrizations" not in path.split("."):
            ours = lookup.ours(owner)
            own = {key: lookup.originals(owner, key) for key in lookup.lists(owner)}
            plain = {**own_parameters(owner), **own_buffers(owner)}
            own |= {key: [tensor] for key, tensor in plain.items() if tensor is not None}
            for key, stored in own.items():
                yield Target(name + key, path + key, owner, key, tuple(stored), ours.get(key))


def named_owners(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Every module once, with the prefixes of its tensors: of their names and of their paths.

    Names lack what transparent wrappers add, such as ``_orig_mod`` of ``torch.compile``.
    """
    names = {"": ""}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if path:
            above, _, child = path.rpartition(".")
            transparent = _is_transparent(modules[above], module)
            names[path] = names[above] + ("" if transparent else f"{child}.")
        yield names[path], path and f"{path}.", module


def _is_transparent(wrapper: nn.Module, wrapped: nn.Module) -> bool:
    """Whether attributes of ``wrapped`` can be read from ``wrapper`` as if they were its own."""
    own = set(lookup.own_tensors(wrapper))  # they hide tensors of the same name in wrapped
    if type(wrapper).__getattr__ is nn.Module.__getattr__ or own & {*lookup.own_tensors(wrapped)}:
        return False
    # Compare the first entry whose name the wrapper does not use itself. A wrapper of a wrapper
    # has such an entry further down.
    for module in wrapped.modules():
        for mapping_of in (own_parameters, own_buffers, own_modules):
            for name, value in mapping_of(module).items():
                if value is not None and name not in mapping_of(wrapper):
                    return getattr(wrapper, name, None) is value
    return False
