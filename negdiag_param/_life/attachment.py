"""Puts a parametrization on a tensor and takes it off, through ``torch.nn.utils.parametrize``."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param._life import lookup, own_class
from negdiag_param._life.assign import silent_writes
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._torch_private import non_persistent_buffers, own_buffers, own_parameters


def attach(owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal) -> None:
    """Registers ``parametrization``; the weight keeps its value, reflected where infeasible."""
    if tensor_name in lookup.lists(owner):
        value: Tensor = getattr(owner, tensor_name).detach()
        _register(owner, tensor_name, parametrization)
        # parametrize leaves the originals as they are, so the value would jump.
        for write in silent_writes(owner, tensor_name, value):
            write.carry_out()
    else:
        _register_first(owner, tensor_name, parametrization)
    if not parametrization.record.persistent:
        non_persistent_buffers(lookup.lists(owner)[tensor_name]).add("original")
        parametrization.register_state_dict_post_hook(_without_mark)  # type: ignore[no-untyped-call]


def detach(owner: nn.Module, tensor_name: str) -> None:
    """Removes all parametrizations of the tensor; its current value stays."""
    order = lookup.first_order(owner)
    persistent = lookup.ours(owner)[tensor_name].record.persistent
    originals = lookup.originals(owner, tensor_name)
    if len(originals) == 1 and is_plain(originals[0]):
        with torch.inference_mode(False), torch.no_grad():
            value = getattr(owner, tensor_name)
        parametrize.remove_parametrizations(owner, tensor_name, leave_parametrized=False)
        give_data(originals[0], value)
    else:
        parametrize.remove_parametrizations(owner, tensor_name)
    own_class.attach(owner)
    lookup.sort(own_parameters(owner), order)
    lookup.sort(own_buffers(owner), order)
    if not persistent:
        non_persistent_buffers(owner).add(tensor_name)


def is_plain(tensor: Tensor) -> bool:
    """Whether :func:`give_data` works on it: subclasses such as DTensor do not take data."""
    return type(tensor) in (Tensor, nn.Parameter)


def give_data(tensor: Tensor, value: Tensor) -> None:
    """Makes ``tensor`` hold ``value``, in the storage of that.

    As ``set_``, which ``parametrize`` uses; but that takes from a parameter what accumulates its
    gradients, and with it the hooks by which DistributedDataParallel keeps replicas in step.
    """
    tensor.data = value.detach()
    torch.autograd.graph.increment_version(tensor)  # a graph that is alive must not use it


def _register(owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal) -> None:
    # Nobody assigned the value that is there, so there is nothing to warn of.
    options = parametrization.options
    parametrization.options = replace(options, infeasible=options.at_registration)
    parametrize.register_parametrization(owner, tensor_name, parametrization)
    parametrization.options = options
    own_class.attach(owner)


def _register_first(owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal) -> None:
    """Registers on a tensor that is not parametrized yet, which stays the object that it is."""
    mapping: Any = own_parameters(owner)
    if tensor_name not in mapping:
        mapping = own_buffers(owner)
    tensor: Tensor = mapping[tensor_name]
    if not is_plain(tensor):
        return _register(owner, tensor_name, parametrization)
    stand_in = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        stand_in = nn.Parameter(stand_in, tensor.requires_grad)
    mapping[tensor_name] = stand_in
    _register(owner, tensor_name, parametrization)
    found: Any = lookup.lists(owner)[tensor_name]
    mapping = own_parameters(found) if isinstance(tensor, nn.Parameter) else own_buffers(found)
    mapping["original"] = tensor
    give_data(tensor, _laid_out(stand_in, tensor.stride()))
    return None


def _laid_out(original: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``original`` as the weight was laid out, also where that was a transposed view."""
    if original.stride() == strides:
        return original
    laid = torch.empty_strided(
        original.shape, strides, dtype=original.dtype, device=original.device
    )
    return laid.copy_(original.detach())


def _without_mark(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """What wrote a tensor that is not in the checkpoint is of no interest there."""
    state_dict.pop(f"{prefix}_extra_state", None)
