"""Plain checkpoints in and out of registered models."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import _torch_private
from negdiag_param._life import lookup
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._ranks import dtensor


def plain_state_dict(model: nn.Module) -> "OrderedDict[str, Any]":
    """The state dict that the model would have if it had never been registered.

    In plain words: every registered tensor stands under its own name with its current value, so
    the result loads with ``strict=True`` into a stock model, and into a registered one.

    Args:
        model: any module; its registered tensors are found within it.

    Returns:
        A new dict with detached tensors, in the order of the stock model.

    Raises:
        ValueError: if a registered tensor carries parametrizations beside ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> list(plain_state_dict(model))
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    state = model.state_dict()
    groups: dict[str, list[str]] = {}
    for key in state:
        groups.setdefault(key.rpartition(".")[0], []).append(key)
    plain: OrderedDict[str, Any] = OrderedDict()
    for prefix, owner in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        entries = {key: state.pop(key) for key in groups.get(prefix, []) if key in state}
        order: list[str] = []
        for tensor_name, parametrization in lookup.ours(owner).items():
            _check_alone(owner, tensor_name, f"{dot}{tensor_name}")
            registered = f"{dot}parametrizations.{tensor_name}."
            original = state[f"{registered}original"]
            for key in [key for key in state if key.startswith(registered)]:
                del state[key]  # a map of the user's may have parameters of its own
            with torch.no_grad():
                entries[f"{dot}{tensor_name}"] = parametrization(original)
            order = order or [f"{dot}{name}" for name in parametrization.record.order]
        lookup.sort(entries, order)
        plain.update(entries)
    plain.update(state)
    _torch_private.keep_metadata(
        state, plain, wanted=lambda prefix: "parametrizations" not in prefix.split(".")
    )
    return plain


def translating(loading: Callable[..., None]) -> Callable[..., None]:
    """The method that reads a module's entries from a state dict, for plain ones as well."""

    @wraps(loading)
    def load(
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
        loading(
            self,
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    return load


def _translate(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> Iterator[str]:
    """Turns plain entries for ``module`` into originals; takes out what must not be loaded.

    Yields:
        What is wrong with that.
    """
    for tensor_name, parametrization in lookup.ours(module).items():
        originals = lookup.originals(module, tensor_name)
        if not lookup.is_alone(module, tensor_name):
            continue
        plain = prefix + tensor_name
        original = f"{prefix}parametrizations.{tensor_name}.original"
        mark = f"{prefix}parametrizations.{tensor_name}.0._extra_state"
        try:
            if isinstance(state_dict.get(mark), Tensor):
                parametrization.set_extra_state(state_dict[mark])
            elif original in state_dict or plain in state_dict:
                state_dict[mark] = parametrization.get_extra_state()
            # set_model_state_dict fills in the model's own tensors for what it does not find.
            if plain in state_dict and state_dict.get(original, originals[0]) is originals[0]:
                value = state_dict.pop(plain)
                assigned = local_metadata.get("assign_to_params_buffers", False)
                state_dict[original] = _inverse(value, originals[0], parametrization, assigned)
        except (TypeError, ValueError) as error:
            yield f"While loading {plain}: {error}"
            # What is there already takes the place of what was refused.
            state_dict[original] = originals[0]
            state_dict[mark] = parametrization.get_extra_state()


def _check_alone(owner: nn.Module, tensor_name: str, name: str) -> None:
    if not lookup.is_alone(owner, tensor_name):
        raise ValueError(
            f"{name}: expected no other parametrization beside the negative diagonal, "
            f"found {lookup.lists(owner)[tensor_name]}"
        )


def _inverse(
    value: Any, original: Tensor, parametrization: NegativeDiagonal, assigned: bool
) -> Any:
    if not isinstance(value, Tensor) or value.shape != original.shape:
        return value  # load_state_dict says what is wrong with it
    if not assigned:
        value = dtensor.aligned(value.to(original.dtype), original)
    return dtensor.like(parametrization.right_inverse(value), original)
