"""Refuses what cannot be registered, before anything changes."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from negdiag_param._doors.targets import Target, every
from negdiag_param._parametrization.invert import dense, summary
from negdiag_param._private import has_values


def check_carrier(target: Target) -> None:
    """Refuses tensors and modules that cannot carry a parametrization."""
    owner, tensor_name = target.owner, target.tensor_name
    if isinstance(owner, torch.jit.ScriptModule):
        raise TypeError(f"expected a module in Python, got a {type(owner).__name__}")
    if hasattr(nn.ModuleDict(), tensor_name):
        raise ValueError(
            f"expected a name that an nn.ModuleDict can hold, where parametrizations are "
            f"kept, got {tensor_name!r}, which is an attribute of it"
        )
    if target.is_registered:
        raise ValueError("expected a tensor not registered yet, got one that is")
    stored = dense(target.stored[0])
    if stored.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"expected a tensor made outside of torch.inference_mode(), got {summary(stored)}, "
            f"made in it"
        )
    if _may_overlap(stored):
        raise ValueError(
            f"expected a tensor whose entries have a memory of their own, got {summary(stored)} "
            f"with strides {stored.stride()}; make it contiguous first"
        )


def check_untied(module: nn.Module, found: list[Target], consequence: str) -> None:
    """Refuses tensors that ``module`` also holds under another name."""
    places: dict[object, list[tuple[Target, Tensor]]] = {}
    for target in every(module):
        for stored in target.stored:
            places.setdefault(_memory(stored), []).append((target, stored))
    for target in found:
        for stored in target.stored:
            for other, tensor in places[_memory(stored)]:
                same = (other.owner, other.tensor_name) == (target.owner, target.tensor_name)
                if not same and _share(stored, tensor):
                    raise ValueError(
                        f"{target.name}: expected a tensor of its own, got one tied to "
                        f"{other.name}, {summary(stored)}; {consequence}. Untie them first"
                    )


def check_kept_nowhere_else(found: list[Target]) -> None:
    """Refuses tensors that their module also keeps in a list, a dict or another attribute."""
    for target in found:
        own = {"_parameters", "_buffers", "_modules"}
        if isinstance(target.owner, nn.RNNBase):
            own.add("_flat_weights")  # collected anew before every forward pass
        for attribute in vars(target.owner).keys() - own:
            for where, tensor in _tensors(vars(target.owner)[attribute]):
                if any(_share(stored, tensor) for stored in target.stored):
                    raise ValueError(
                        f"{target.name}: expected a tensor that its module reads as "
                        f"self.{target.tensor_name}, got one that it also keeps in "
                        f"self.{attribute}{where}, {summary(tensor)}; what reads it there would "
                        f"see the original, which is not constrained. Remove that reference first"
                    )


def _may_overlap(stored: Tensor) -> bool:
    """Whether entries may share memory: a stride that is not beyond what all shorter ones reach."""
    reach = 0
    for step, n in sorted(zip(stored.stride(), stored.shape, strict=True)):
        if n > 1 and step <= reach:
            return stored.numel() > 0
        reach += (n - 1) * step
    return False


def _tensors(value: object, depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """The tensors in ``value`` and the containers in it, with their indices, such as ``[0]``."""
    if isinstance(value, Tensor):
        yield "", value
    elif depth and isinstance(value, (dict, list, tuple, set)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from ((f"[{key!r}]{rest}", tensor) for rest, tensor in _tensors(item, depth - 1))


def _memory(tensor: Tensor) -> object:
    """A key that is the same for all tensors that may share memory."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if plain and has_values(tensor) and tensor.numel():
        return tensor.device, tensor.untyped_storage().data_ptr()
    return id(tensor)


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have a byte in common; those of ``one`` do not overlap."""
    if one is other or _memory(one) != _memory(other):
        return one is other
    layouts = [_bytes(tensor) for tensor in (one, other)]
    ends = [
        offset + 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        for shape, steps, offset in layouts
    ]
    if max(offset for *_, offset in layouts) >= min(ends):
        return False
    memory = torch.zeros(max(ends), dtype=torch.bool, device="cpu")
    mine, others = (memory.as_strided(*layout) for layout in layouts)
    mine.fill_(True)
    return bool(others.any())


def _bytes(tensor: Tensor) -> tuple[list[int], list[int], int]:
    """The shape, the strides and the offset of the bytes of ``tensor`` in its storage."""
    size = tensor.itemsize
    steps = [*(step * size for step in tensor.stride()), 1]
    return [*tensor.shape, size], steps, int(tensor.storage_offset()) * size
