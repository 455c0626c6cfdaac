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
    value: Tensor = getattr(owner, tensor_name).detach()
    chained = tensor_name in lookup.lists(owner)
    # Nobody assigned the value that is there, so there is nothing to warn of.
    options = parametrization.options
    parametrization.options = replace(options, infeasible=options.at_registration)
    parametrize.register_parametrization(owner, tensor_name, parametrization)
    parametrization.options = options
    own_class.attach(owner)
    if not parametrization.record.persistent:
        non_persistent_buffers(lookup.lists(owner)[tensor_name]).add("original")
        parametrization.register_state_dict_post_hook(_without_mark)  # type: ignore[no-untyped-call]
    if chained:
        # parametrize leaves the originals as they are, so the value would jump.
        for write in silent_writes(owner, tensor_name, value):
            write.carry_out()
    else:
        _keep_strides(lookup.originals(owner, tensor_name)[0], value.stride())


def detach(owner: nn.Module, tensor_name: str) -> None:
    """Removes all parametrizations of the tensor; its current value stays."""
    order = lookup.first_order(owner)
    persistent = lookup.ours(owner)[tensor_name].record.persistent
    parametrize.remove_parametrizations(owner, tensor_name)
    own_class.attach(owner)
    lookup.sort(own_parameters(owner), order)
    lookup.sort(own_buffers(owner), order)
    if not persistent:
        non_persistent_buffers(owner).add(tensor_name)


def _without_mark(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """What wrote a tensor that is not in the checkpoint is of no interest there."""
    state_dict.pop(f"{prefix}_extra_state", None)


def _keep_strides(original: Tensor, strides: tuple[int, ...]) -> None:
    """Lays ``original`` out as the weight was, also where that was a transposed view."""
    if original.stride() != strides and type(original) in (Tensor, nn.Parameter):
        with torch.no_grad():
            laid = torch.empty_strided(
                original.shape, strides, dtype=original.dtype, device=original.device
            )
            original.set_(laid.copy_(original))  # type: ignore[call-overload]
