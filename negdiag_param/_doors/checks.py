"""What cannot be registered, with the reason. Nothing here changes anything."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from negdiag_param._doors import layers
from negdiag_param._doors.targets import Target, every
from negdiag_param._life import lookup
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._parametrization.invert import dense, summary

_DEPTH = 3  # of containers within containers
_MANAGED = ("_parameters", "_buffers", "_modules")


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
    if lookup.find(owner, tensor_name):
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


def check_dims(target: Target, dims: tuple[int, ...] | None, value: Tensor) -> None:
    """Refuses tensors of three and more dimensions where nothing says which are the matrix."""
    if dims is None and value.ndim > 2 and not layers.has_kernel(target.owner, target.tensor_name):
        raise ValueError(
            f"expected dims, such as dims=(-2, -1), for a tensor of {value.ndim} "
            f"dimensions, got none; {summary(value)}"
        )


def check_layer(target: Target, diagonal: Diagonal) -> None:
    """Refuses layers whose gradients or kernels do not suit."""
    layers.check_gradient(target.owner)
    if diagonal.taps == "center":
        layers.check_center(target.owner, target.tensor_name)


def check_untied(module: nn.Module, found: list[Target], consequence: str) -> None:
    """Refuses tensors that another place in ``module`` uses under another name."""
    places: dict[object, list[Target]] = {}
    for target in every(module):
        for stored in target.stored:
            places.setdefault(_place(stored), []).append(target)
    for target in found:
        for stored in target.stored:
            for other in places[_place(stored)]:
                if (other.owner, other.tensor_name) != (target.owner, target.tensor_name):
                    raise ValueError(
                        f"{target.name}: expected a tensor of its own, got one tied to "
                        f"{other.name}, {summary(stored)}; {consequence}. Untie them first"
                    )


def check_kept_nowhere_else(found: list[Target]) -> None:
    """Refuses tensors that their module keeps a second time, in a list, a dict or an attribute.

    That module would go on computing with the original, which is not constrained.

    Raises:
        ValueError: if there is one, naming the attribute.
    """
    for target in found:
        kept = {id(stored) for stored in target.stored}
        for attribute, value in vars(target.owner).items():
            # RNNs collect their weights anew before every forward pass.
            of_rnn = isinstance(target.owner, nn.RNNBase) and attribute == "_flat_weights"
            if attribute in _MANAGED or of_rnn:
                continue
            for where, tensor in _tensors(value, _DEPTH):
                if id(tensor) in kept:
                    raise ValueError(
                        f"{target.name}: expected a tensor that its module reads as "
                        f"self.{target.tensor_name}, got one that it also keeps in "
                        f"self.{attribute}{where}, {summary(tensor)}; what reads it there would "
                        f"see the original, which is not constrained. Remove that reference first"
                    )


def _may_overlap(stored: Tensor) -> bool:
    """Whether a step along one dimension is no longer than the reach of all shorter ones."""
    reach = 0
    for step, n in sorted(zip(stored.stride(), stored.shape, strict=True)):
        if n > 1 and step <= reach:
            return stored.numel() > 0
        reach += (n - 1) * step
    return False


def _tensors(value: object, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a container, and how to get there."""
    if isinstance(value, Tensor):
        yield "", value
        return
    items: list[tuple[object, object]] = []
    if depth and isinstance(value, dict):
        items = list(value.items())
    elif depth and isinstance(value, (list, tuple, set)):
        items = list(enumerate(value))
    for key, item in items:
        yield from ((f"[{key!r}]{rest}", tensor) for rest, tensor in _tensors(item, depth - 1))


def _place(tensor: Tensor) -> object:
    """Where a tensor lies: equal for two parameters that share their memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
        return tensor.device, tensor.data_ptr()
    return id(tensor)
