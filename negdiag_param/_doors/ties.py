"""Tensors that are used in two places."""

from torch import Tensor, nn

from negdiag_param._doors.targets import Target, every


def check_untied(module: nn.Module, found: list[Target]) -> None:
    """Refuses tensors that another place in ``module`` uses under another name.

    Raises:
        ValueError: if one is, naming both.
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
                        f"{other.name}, shape {tuple(stored.shape)}, {stored.dtype}; registering "
                        f"would rewrite both. Untie them first"
                    )


def _place(tensor: Tensor) -> object:
    """Where a tensor lies: equal for two parameters that share their memory."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
        return tensor.device, tensor.data_ptr()
    return id(tensor)
