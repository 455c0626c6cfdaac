"""From a tensor name, dotted name or pattern to the modules that own the tensors."""

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple, NoReturn

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from negdiag_param._life import lookup
from negdiag_param._torch_private import own_buffers, own_parameters


class Target(NamedTuple):
    """A tensor: its name within the module that the user gave, its owner and its name there."""

    name: str
    owner: nn.Module
    tensor_name: str

    @property
    def tensor(self) -> Tensor:
        """The tensor's current value."""
        return getattr(self.owner, self.tensor_name)  # type: ignore[no-any-return]

    @property
    def stored(self) -> list[Tensor]:
        """What it is computed from; the tensor itself if it is not parametrized."""
        return lookup.stored(self.owner, self.tensor_name)

    @property
    def ndim(self) -> int:
        """The number of dimensions; those of a lazy tensor are not known, and pass for two."""
        return 2 if any(map(is_lazy, self.stored)) else self.tensor.ndim


def find(module: nn.Module, tensor_name: str) -> list[Target]:
    """The tensors that ``tensor_name`` means: one for a name, any number for a pattern."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if not isinstance(tensor_name, str):
        raise TypeError(f"tensor_name: expected a string, got {type(tensor_name).__name__}")
    found = [target for target in every(module) if target.name == tensor_name]
    if not found and any(character in tensor_name for character in "*?["):
        buffers = {id(buffer) for buffer in module.buffers()}
        found = [
            target
            for target in every(module)
            if fnmatchcase(target.name, tensor_name)
            and not any(id(original) in buffers for original in target.stored)
        ]
    if not found:
        refuse_no_match(module, tensor_name)
    return found


def is_pattern(tensor_name: str, found: list[Target]) -> bool:
    """Whether ``tensor_name``, which means ``found``, is more than the name of a tensor."""
    return [target.name for target in found] != [tensor_name]


def every(module: nn.Module) -> Iterator[Target]:
    """Every parameter and buffer once per owner, under the name it has without parametrization."""
    for prefix, owner in module.named_modules():
        if "parametrizations" in prefix.split("."):
            continue
        names = [*lookup.lists(owner)]
        for mapping in (own_parameters(owner), own_buffers(owner)):
            names += [name for name, tensor in mapping.items() if tensor is not None]
        for name in names:
            yield Target(_joined(prefix, name), owner, name)


def registered(model: nn.Module) -> Iterator[Target]:
    """Every tensor within ``model`` that carries our parametrization, each once."""
    for prefix, owner in model.named_modules():
        for tensor_name in lookup.ours(owner):
            yield Target(_joined(prefix, tensor_name), owner, tensor_name)


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
                f"without, shape {tuple(target.tensor.shape)}, {target.tensor.dtype}"
            )
    return found


def refuse_no_match(module: nn.Module, tensor_name: str, wanted: str = "") -> NoReturn:
    """The error for a name or pattern that means nothing, with names that are near."""
    names = [target.name for target in every(module)]
    near = difflib.get_close_matches(tensor_name, names, n=5, cutoff=0.3) or names[:5]
    what = f"tensors with {wanted}" if wanted else "the name of a parameter or buffer"
    raise ValueError(
        f"{tensor_name!r}: expected {what} in {type(module).__name__}, found no match; "
        f"near names: {', '.join(near) or 'none, it has no tensors'}"
    )


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
