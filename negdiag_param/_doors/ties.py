"""Tensors that are used in two places."""

from collections.abc import Iterator

from torch import Tensor, nn

from negdiag_param._doors.targets import Target, every

_DEPTH = 3  # of containers within containers


def check_untied(module: nn.Module, found: list[Target], consequence: str) -> None:
    """Refuses tensors that another place in ``module`` uses under another name.

    Raises:
        ValueError: if one is, naming both and the ``consequence``.
    """
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
                        f"{other.name}, shape {tuple(stored.shape)}, {stored.dtype}; "
                        f"{consequence}. Untie them first"
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
            if attribute in _MANAGED or _is_of_rnn(target.owner, attribute):
                continue
            for where, tensor in _tensors(value, _DEPTH):
                if id(tensor) in kept:
                    raise ValueError(
                        f"{target.name}: expected a tensor that its module reads as "
                        f"self.{target.tensor_name}, got one that it also keeps in "
                        f"self.{attribute}{where}, shape {tuple(tensor.shape)}, {tensor.dtype}; "
                        f"what reads it there would see the original, which is not constrained. "
                        f"Remove that reference first"
                    )


_MANAGED = ("_parameters", "_buffers", "_modules")


def _is_of_rnn(owner: nn.Module, attribute: str) -> bool:
    # RNNs collect their weights anew before every forward pass.
    return isinstance(owner, nn.RNNBase) and attribute == "_flat_weights"


def _tensors(value: object, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a container, and how to get there."""
    if isinstance(value, Tensor):
        yield "", value
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"[{key!r}]{rest}", tensor) for rest, tensor in _tensors(item, depth - 1))
    elif depth and isinstance(value, (list, tuple, set)):
        for i, item in enumerate(value):
            yield from ((f"[{i}]{rest}", tensor) for rest, tensor in _tensors(item, depth - 1))


def _place(tensor: Tensor) -> object:
    """Where a tensor lies: equal for two parameters that share their memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
        return tensor.device, tensor.data_ptr()
    return id(tensor)
