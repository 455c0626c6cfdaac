"""From a tensor name, dotted name or pattern to the modules that own the tensors."""

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple, NoReturn

from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import _attachment


class Target(NamedTuple):
    """A tensor: its name within the module that the user gave, its owner and its name there."""

    name: str
    owner: nn.Module
    tensor_name: str

    @property
    def tensor(self) -> Tensor:
        """The tensor's current value."""
        return getattr(self.owner, self.tensor_name)  # type: ignore[no-any-return]


def targets(module: nn.Module, tensor_name: str) -> list[Target]:
    """The tensors that ``tensor_name`` means: one for a name, any number for a pattern."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if not isinstance(tensor_name, str):
        raise TypeError(f"tensor_name: expected a string, got {type(tensor_name).__name__}")
    everything = list(_tensors(module))
    if is_pattern(module, tensor_name):
        buffers = {id(buffer) for buffer in module.buffers()}
        found = [
            target
            for target in everything
            if fnmatchcase(target.name, tensor_name)
            and not any(id(original) in buffers for original in _stored(target))
        ]
    else:
        found = [target for target in everything if target.name == tensor_name]
    if not found:
        refuse_no_match(module, tensor_name)
    return found


def registered(model: nn.Module) -> Iterator[Target]:
    """Every tensor within ``model`` that carries our parametrization, each once."""
    for prefix, owner in model.named_modules():
        for tensor_name in _attachment.ours(owner):
            yield Target(_joined(prefix, tensor_name), owner, tensor_name)


def registered_targets(module: nn.Module, tensor_name: str) -> list[Target]:
    """The tensors that ``tensor_name`` means among those that carry our parametrization."""
    found = targets(module, tensor_name)
    if is_pattern(module, tensor_name):
        found = [t for t in found if _attachment.find(t.owner, t.tensor_name)]
        if not found:
            refuse_no_match(module, tensor_name, "a negative diagonal")
    for target in found:
        if not _attachment.find(target.owner, target.tensor_name):
            raise ValueError(
                f"{target.name}: expected a tensor registered with a negative diagonal, got one "
                f"without, shape {tuple(target.tensor.shape)}, {target.tensor.dtype}"
            )
    return found


def check_untied(module: nn.Module, found: list[Target]) -> None:
    """Refuses tensors that another place in ``module`` uses under another name."""
    places: dict[object, list[Target]] = {}
    for target in _tensors(module):
        for stored in _stored(target):
            places.setdefault(_place(stored), []).append(target)
    for target in found:
        for stored in _stored(target):
            for other in places[_place(stored)]:
                if (other.owner, other.tensor_name) != (target.owner, target.tensor_name):
                    raise ValueError(
                        f"{target.name}: expected a tensor of its own, got one tied to "
                        f"{other.name}, shape {tuple(stored.shape)}, {stored.dtype}; registering "
                        f"would rewrite both. Untie them first"
                    )


def is_pattern(module: nn.Module, tensor_name: str) -> bool:
    """Whether a name is a shell-style pattern, and not just the name of a tensor."""
    return any(character in tensor_name for character in "*?[") and all(
        target.name != tensor_name for target in _tensors(module)
    )


def refuse_no_match(module: nn.Module, tensor_name: str, wanted: str = "") -> NoReturn:
    """The error for a name or pattern that means nothing, with names that are near."""
    names = [target.name for target in _tensors(module)]
    near = difflib.get_close_matches(tensor_name, names, n=5, cutoff=0.3) or names[:5]
    what = f"tensors with {wanted}" if wanted else "the name of a parameter or buffer"
    raise ValueError(
        f"{tensor_name!r}: expected {what} in {type(module).__name__}, found no match; "
        f"near names: {', '.join(near) or 'none, it has no tensors'}"
    )


def _tensors(module: nn.Module) -> Iterator[Target]:
    """Every parameter and buffer once per owner, under the name it has without parametrization."""
    for prefix, owner in module.named_modules():
        if isinstance(owner, parametrize.ParametrizationList) or _is_list_holder(prefix):
            continue
        if parametrize.is_parametrized(owner):
            for tensor_name in owner.parametrizations:
                yield Target(_joined(prefix, tensor_name), owner, tensor_name)
        for mapping in (owner._parameters, owner._buffers):
            for tensor_name, tensor in mapping.items():
                if tensor is not None:
                    yield Target(_joined(prefix, tensor_name), owner, tensor_name)


def _is_list_holder(prefix: str) -> bool:
    return "parametrizations" in prefix.split(".")


def _stored(target: Target) -> list[Tensor]:
    if parametrize.is_parametrized(target.owner, target.tensor_name):
        return _attachment.originals(target.owner, target.tensor_name)
    return [target.tensor]


def _place(tensor: Tensor) -> object:
    """Where a tensor lies: equal for two parameters that share their memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
        return tensor.device, tensor.data_ptr()
    return id(tensor)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
