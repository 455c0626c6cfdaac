"""From a tensor name, dotted name or pattern to the modules that own the tensors."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from negdiag_param._life import lookup
from negdiag_param._life.lookup import joined
from negdiag_param._parametrization.invert import summary
from negdiag_param._private import own_buffers, own_modules, own_parameters
from negdiag_param._ranks import agreement, shards


@dataclass(frozen=True)
class Target:
    """A parameter or buffer, or what is computed in place of one.

    Args:
        name: its name within the module that the user gave.
        owner: the module that holds it.
        tensor_name: its name there.
        path: as the name, with those of wrappers in between, as ``named_modules`` has it.
        stored: what it is computed from; the tensor itself if it is not parametrized.
    """

    name: str
    owner: nn.Module
    tensor_name: str
    path: str
    stored: tuple[Tensor, ...]

    @property
    def tensor(self) -> Tensor:
        """The tensor's current value, computed at every call."""
        return getattr(self.owner, self.tensor_name)  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """The number of dimensions; those of a lazy tensor are not known, and pass for two."""
        return 2 if any(map(is_lazy, self.stored)) else self.tensor.ndim


def find(module: object, tensor_name: object) -> list[Target]:
    """The tensors that ``tensor_name`` means: one for a name, any number for a pattern."""
    module = checked(module, "module")
    if not isinstance(tensor_name, str):
        raise TypeError(f"tensor_name: expected a string, got {type(tensor_name).__name__}")
    targets = list(every(module))
    found = [t for t in targets if t.name == tensor_name]
    found = found or [t for t in targets if t.path == tensor_name]
    if not found and any(character in tensor_name for character in "*?["):
        buffers = {id(buffer) for buffer in module.buffers()}
        found = [
            t
            for t in targets
            if (fnmatchcase(t.name, tensor_name) or fnmatchcase(t.path, tensor_name))
            and not any(id(original) in buffers for original in t.stored)
        ]
    if not found:
        refuse_no_match(module, tensor_name)
    return found


def find_registered(module: nn.Module, tensor_name: str) -> list[Target]:
    """The tensors that ``tensor_name`` means among those that carry our parametrization."""
    found = find(module, tensor_name)
    if is_pattern(tensor_name, found):
        found = [target for target in found if lookup.find(target.owner, target.tensor_name)]
        if not found:
            refuse_no_match(module, tensor_name, "a negative diagonal")
    for target in found:
        if not lookup.find(target.owner, target.tensor_name):
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


def is_pattern(tensor_name: str, found: list[Target]) -> bool:
    """Whether ``tensor_name``, which means ``found``, is more than the name of a tensor."""
    return len(found) > 1 or tensor_name not in (found[0].name, found[0].path)


def stored(found: list[Target]) -> list[Tensor]:
    """What the tensors of ``found`` are computed from."""
    return [tensor for target in found for tensor in target.stored]


def gathered(target: Target) -> Tensor:
    """The tensor as one process would see it. All ranks gather it, or none."""
    with agreement.together(target.stored, target.name):
        value = target.tensor
    return shards.whole(value)


def check_whole(target: Target, ndim: int | None) -> None:
    """Refuses what FullyShardedDataParallel leaves outside of a forward pass: flat or freed."""
    original = target.stored[0]
    flat = ndim is not None and original.ndim != ndim
    plain = type(original) in (Tensor, nn.Parameter) and not original.is_meta
    freed = plain and original.numel() > 0 and original.untyped_storage().nbytes() == 0
    if flat or freed:
        raise ValueError(
            f"{target.name}: expected a tensor of {ndim} dimensions, got what is left of it "
            f"outside of a forward pass, {summary(original)}; go "
            f"within FullyShardedDataParallel.summon_full_params(model)"
        )


def every(module: nn.Module) -> Iterator[Target]:
    """Every parameter and buffer once per owner, under the name it has without parametrization."""
    for name, path, owner in named_owners(module):
        if "parametrizations" in path.split("."):
            continue
        own = {key: lookup.originals(owner, key) for key in lookup.lists(owner)}
        for mapping in (own_parameters(owner), own_buffers(owner)):
            own |= {key: [tensor] for key, tensor in mapping.items() if tensor is not None}
        for key, tensors in own.items():
            yield Target(joined(name, key), owner, key, joined(path, key), tuple(tensors))


def registered(model: nn.Module) -> Iterator[Target]:
    """Every tensor within ``model`` that carries our parametrization, each once."""
    for target in every(model):
        if lookup.find(target.owner, target.tensor_name):
            yield target


def refuse_no_match(module: nn.Module, tensor_name: str, wanted: str = "") -> NoReturn:
    """The error for a name or pattern that means nothing, with names that are near."""
    names = [target.name for target in every(module)]
    near = difflib.get_close_matches(tensor_name, names, n=5, cutoff=0.3) or names[:5]
    what = f"tensors with {wanted}" if wanted else "the name of a parameter or buffer"
    raise ValueError(
        f"{tensor_name!r}: expected {what} in {type(module).__name__}, found no match; "
        f"near names: {', '.join(near) or 'none, it has no tensors'}"
    )


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
    if not set(lookup.own_tensors(wrapper)).isdisjoint(lookup.own_tensors(wrapped)):
        return False  # the wrapper's own hide them
    # Compare the first entry whose name the wrapper does not use itself. A wrapper of a wrapper
    # has such an entry further down.
    for module in wrapped.modules():
        for mapping_of in (own_parameters, own_buffers, own_modules):
            for name, value in mapping_of(module).items():
                if value is not None and name not in mapping_of(wrapper):
                    return getattr(wrapper, name, None) is value
    return False
