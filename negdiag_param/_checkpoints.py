"""Plain checkpoints in and out of registered models."""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from negdiag_param import _attachment, _sharded
from negdiag_param._parametrizations import NegativeDiagonal


def accept_plain(module: nn.Module, tensor_name: str) -> RemovableHandle:
    """Makes ``load_state_dict`` take the tensor under its plain name too."""
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(
        partial(_translate, tensor_name)
    )
    return handle


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
        mine = _attachment.ours(owner)
        dot = f"{prefix}." if prefix else ""
        entries = {key: state.pop(key) for key in groups.get(prefix, []) if key in state}
        for tensor_name, parametrization in mine.items():
            chain = f"{dot}parametrizations.{tensor_name}"
            if len(_attachment.chain(owner, tensor_name)) > 1:
                raise ValueError(
                    f"{dot}{tensor_name}: expected no other parametrization beside the negative "
                    f"diagonal, found {_attachment.chain(owner, tensor_name)}"
                )
            original = state[f"{chain}.original"]
            for key in [key for key in state if key.startswith(f"{chain}.")]:
                del state[key]  # a map of the user's may have parameters of its own
            with torch.no_grad():
                entries[f"{dot}{tensor_name}"] = parametrization(original)
        orders = [[f"{dot}{name}" for name in p.order] for p in mine.values()]
        _attachment.in_order(entries, *orders)
        plain.update(entries)
    plain.update(state)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        plain._metadata = type(metadata)(  # type: ignore[attr-defined]
            (key, value)
            for key, value in metadata.items()
            if "parametrizations" not in key.split(".")
        )
    return plain


def _translate(
    tensor_name: str,
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Turns a plain entry into one of the original; takes out what must not be loaded."""
    parametrization = _attachment.find(module, tensor_name)
    originals = _attachment.originals(module, tensor_name)
    if parametrization is None or len(_attachment.chain(module, tensor_name)) > 1:
        return
    plain = prefix + tensor_name
    original = f"{prefix}parametrizations.{tensor_name}.original"
    mark = f"{prefix}parametrizations.{tensor_name}.0._extra_state"
    problem = None
    if isinstance(state_dict.get(mark), Tensor):
        problem = parametrization.mismatch(state_dict[mark])
    elif original in state_dict or plain in state_dict:
        state_dict[mark] = parametrization.get_extra_state()
    # set_model_state_dict fills in the tensors of the model itself for what it does not find.
    if plain in state_dict and state_dict.get(original, originals[0]) is originals[0]:
        value = state_dict.pop(plain)
        try:
            state_dict[original] = _inverse(value, originals[0], parametrization, local_metadata)
        except (TypeError, ValueError) as error:
            problem = str(error)
    if problem:
        error_msgs.append(f"While loading {plain}: {problem}")
        # What is there already takes the place of what was refused.
        state_dict[original] = originals[0]
        state_dict[mark] = parametrization.get_extra_state()


def _inverse(
    value: Any,
    original: Tensor,
    parametrization: NegativeDiagonal,
    local_metadata: dict[str, Any],
) -> Any:
    if not isinstance(value, Tensor) or value.shape != original.shape:
        return value  # load_state_dict says what is wrong with it
    if not local_metadata.get("assign_to_params_buffers", False):
        value = _sharded.aligned(value.to(original.dtype), original)
    return _sharded.like(parametrization.right_inverse(value), original)
