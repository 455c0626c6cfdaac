"""Refuses what cannot be registered, before anything changes."""

from collections.abc import Iterator
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor, nn

from negdiag_param._doors.targets import Target, every
from negdiag_param._parametrization.invert import dense, summary
from negdiag_param._parametrization.options import Options
from negdiag_param._private import has_values

_Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_STACKS = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.MultiheadAttention: 3}


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
    if target.ours is not None:
        raise ValueError("expected a tensor not registered yet, got one that is")
    stored = dense(target.stored[0])
    if stored.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"expected a tensor made outside of torch.inference_mode(), got {summary(stored)}, "
            f"made in it"
        )
    # Entries have a memory of their own if each stride is beyond what all shorter ones reach.
    steps = sorted(
        (step, n) for step, n in zip(stored.stride(), stored.shape, strict=True) if n > 1
    )
    reach = accumulate((step * (n - 1) for step, n in steps), initial=0)
    if stored.numel() and any(step <= far for (step, _), far in zip(steps, reach, strict=False)):
        raise ValueError(
            f"expected a tensor whose entries have a memory of their own, got {summary(stored)} "
            f"with strides {stored.stride()}; make it contiguous first"
        )


def layer_blocks(target: Target, options: Options, value: Tensor) -> int:
    """How many matrices the layer stacks: groups or gates. Refuses layers that do not suit."""
    owner, tensor_name = target.owner, target.tensor_name
    stacked = next((number for cls, number in _STACKS.items() if isinstance(owner, cls)), 1)
    unsaid = options.blocks is None and options.dims is None
    # Inputs are not the units themselves, so a diagonal of gates' inputs is meant only if said so.
    if stacked > 1 and unsaid and tensor_name.startswith(("weight_ih", "in_proj_weight")):
        raise ValueError(
            f"expected blocks, as {stacked} matrices are stacked in {tensor_name}, got none; "
            f"{summary(value)}; pass blocks={stacked} for a diagonal in each"
        )
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.sparse:
        raise ValueError(
            f"expected a layer with dense gradients, got {type(owner).__name__}("
            f"sparse=True); make it with sparse=False"
        )
    if not (isinstance(owner, _Convolution) and tensor_name == "weight"):
        if options.dims is None and value.ndim > 2:
            raise ValueError(
                f"expected dims, such as dims=(-2, -1), for a tensor of {value.ndim} dimensions, "
                f"got none; {summary(value)}"
            )
        return stacked if tensor_name.startswith("weight_hh") else 1
    if options.dominance and options.taps == "all":
        raise ValueError(
            f"expected taps='center' for dominance={options.dominance!r} of a convolution, got "
            f"taps='all', which is not the diagonal of its matrix; {summary(value)}"
        )
    kernel = zip(owner.kernel_size, owner.dilation, strict=True)
    if options.taps == "center" and any(size % 2 == 0 and step > 1 for size, step in kernel):
        raise ValueError(
            f"expected an odd kernel size where the dilation is above 1 for taps='center', got "
            f"kernel_size={owner.kernel_size}, dilation={owner.dilation}, whose main diagonal "
            f"no tap reaches"
        )
    return owner.groups


def check_untied(module: nn.Module, found: list[Target], consequence: str) -> None:
    """Refuses tensors that ``module`` also holds under another name."""
    places: dict[object, list[tuple[Target, Tensor]]] = {}
    for target in every(module):
        for stored in target.stored:
            places.setdefault(_memory(stored), []).append((target, stored))
    for target in found:
        for stored in target.stored:
            for other, tensor in places[_memory(stored)]:
                if other.path != target.path and share(stored, tensor):
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
                if any(share(stored, tensor) for stored in target.stored):
                    raise ValueError(
                        f"{target.name}: expected a tensor that its module reads as "
                        f"self.{target.tensor_name}, got one that it also keeps in "
                        f"self.{attribute}{where}, {summary(tensor)}; what reads it there would "
                        f"see the original, which is not constrained. Remove that reference first"
                    )


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


def share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have a byte in common; those of ``one`` do not overlap."""
    if one is other or _memory(one) != _memory(other):
        return one is other
    layouts, ends = [], []
    for tensor in (one, other):
        shape, size = [*tensor.shape, tensor.itemsize], tensor.itemsize
        steps, start = [*(s * size for s in tensor.stride()), 1], tensor.storage_offset() * size
        layouts.append((shape, steps, start))
        ends.append(start + 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)))
    if max(start for *_, start in layouts) >= min(ends):
        return False
    memory = torch.zeros(max(ends), dtype=torch.bool, device="cpu")
    mine, others = (memory.as_strided(*layout) for layout in layouts)
    mine.fill_(True)
    return bool(others.any())
