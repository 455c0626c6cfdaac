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
        self: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        error_msgs += _translate(self, state_dict, prefix, local_metadata)
        others = strict, missing_keys, unexpected_keys, error_msgs
        load(self, state_dict, prefix, local_metadata, *others)

    return translated


def _translate(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> Iterator[str]:
    """Turns plain entries for ``module`` into originals; takes out what must not be loaded.

    Yields:
        What is wrong with that.
    """
    for tensor_name, parametrization in lookup.ours(module).items():
        if not lookup.is_alone(module, tensor_name):
            continue
        originals = lookup.originals(module, tensor_name)
        plain = prefix + tensor_name
        original = f"{prefix}parametrizations.{tensor_name}.original"
        mark = f"{prefix}parametrizations.{tensor_name}.0._extra_state"
        persistent = parametrization.record.persistent
        # set_model_state_dict fills in the model's own tensors for what it does not find.
        own = state_dict.get(original, originals[0]) is originals[0]
        value = state_dict.get(plain) if own and persistent else None
        value = agreement.shared(value, originals[0]) if persistent else None
        if own and value is not None:
            state_dict[plain] = value
        try:
            with agreement.together(originals, plain):
                _check_real(state_dict.get(original))
                if not is_placeholder(state_dict.get(mark)) and mark in state_dict:
                    parametrization.set_extra_state(state_dict[mark])
                elif original in state_dict or plain in state_dict or not persistent:
                    state_dict[mark] = parametrization.get_extra_state()
            if own and plain in state_dict and persistent:
                value = state_dict.pop(plain)
                assigned = local_metadata.get("assign_to_params_buffers", False)
                with agreement.together(originals, plain):
                    state_dict[original] = _inverse(value, originals[0], parametrization, assigned)
        except (TypeError, ValueError) as error:
            yield f"While loading {plain}: {error}"
            # The current tensors take the place of what was refused, so that PyTorch loads them
            # and reports nothing beside our error.
            state_dict[original] = originals[0]
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
