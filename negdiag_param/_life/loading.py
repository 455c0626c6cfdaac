"""Loads plain checkpoints into registered modules, and refuses those of other maps."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param._life import lookup
from negdiag_param._parametrization.invert import summary
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._private import is_placeholder
from negdiag_param._ranks import agreement, shards


def translating(load: Callable[..., None]) -> Callable[..., None]:
    """The method that reads a module's entries from a state dict, for plain ones as well."""

    @wraps(load)
    def translated(
        self: nn.Module, state_dict: Any, prefix: str, local_metadata: Any, *others: Any
    ) -> None:
        *_, error_msgs = others  # strict, missing_keys, unexpected_keys, error_msgs
        error_msgs += _translate(self, state_dict, prefix, local_metadata)
        load(self, state_dict, prefix, local_metadata, *others)

    return translated


def _translate(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> Iterator[str]:
    """Turns plain entries for ``module`` into originals, and yields what is wrong with them."""
    for tensor_name, parametrization in lookup.ours(module).items():
        if not lookup.is_alone(module, tensor_name):
            continue
        current = lookup.originals(module, tensor_name)[0]
        plain, inside = prefix + tensor_name, f"{prefix}parametrizations.{tensor_name}."
        original, mark = f"{inside}original", f"{inside}0._extra_state"
        persistent = parametrization.record.persistent
        # set_model_state_dict fills in the model's own tensors for what it does not find.
        takes_plain = persistent and state_dict.get(original, current) is current
        if persistent:
            value = agreement.shared(state_dict.get(plain) if takes_plain else None, current)
            if takes_plain and value is not None:
                state_dict[plain] = value
        try:
            with agreement.together([current], plain):
                _check_real(state_dict.get(original))
                if not is_placeholder(state_dict.get(mark)) and mark in state_dict:
                    parametrization.set_extra_state(state_dict[mark])
                elif original in state_dict or plain in state_dict or not persistent:
                    state_dict[mark] = parametrization.get_extra_state()
            if takes_plain and plain in state_dict:
                value = state_dict.pop(plain)
                assigned = local_metadata.get("assign_to_params_buffers", False)
                with agreement.together([current], plain):
                    state_dict[original] = _inverse(value, current, parametrization, assigned)
        except (TypeError, ValueError) as error:
            yield f"While loading {plain}: {error}"
            # PyTorch loads the current tensors instead, and reports nothing beside our error.
            state_dict[original] = current
            state_dict[mark] = parametrization.get_extra_state()


def _inverse(
    value: Any, original: Tensor, parametrization: NegativeDiagonal, assigned: bool
) -> Any:
    if not isinstance(value, Tensor) or value.shape != original.shape:
        return value  # load_state_dict says what is wrong with it
    _check_real(value)
    if not assigned:
        value = shards.aligned(value.to(original.dtype), original)
    with torch.inference_mode(False), torch.no_grad():  # a parameter that can be trained later
        return shards.like(parametrization.right_inverse(value), original)


def _check_real(value: object) -> None:
    """Refuses complex and quantized tensors, of which loading would keep the real part only."""
    if isinstance(value, Tensor) and (value.is_complex() or value.is_quantized):
        raise TypeError(f"expected real numbers, got {summary(value)}")
