"""The checkpoint that the stock model would write."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._doors import targets
from negdiag_param._doors.targets import named_owners
from negdiag_param._life import lookup
from negdiag_param._life.lookup import joined
from negdiag_param._parametrization.parametrization import NegativeDiagonal


def plain_state_dict(model: nn.Module) -> "OrderedDict[str, Any]":
    """The state dict that the model would have if it had never been registered.

    In plain words: every registered tensor stands under its own name with its current value, so
    the result loads with ``strict=True`` into a stock model, and into a registered one.

    Args:
        model: any module; its registered tensors are found within it.

    Returns:
        A new dict with detached tensors, in the order of the stock model.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if a registered tensor carries parametrizations beside ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> list(plain_state_dict(model))
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    state = targets.checked(model, "model").state_dict(keep_vars=True)
    found = list(_registered(model, state))
    inside = tuple(f"{entry.prefix}parametrizations.{entry.tensor_name}." for entry in found)
    entries = {k: _detached(value) for k, value in state.items() if not k.startswith(inside)}
    for entry in found:
        with torch.no_grad():
            weight = entry.parametrization(state[entry.key])
        entries[f"{entry.prefix}{entry.tensor_name}"] = weight
    plain = OrderedDict((key, entries[key]) for key in _in_order(list(state), entries, found))
    _private.keep_metadata(
        state, plain, wanted=lambda prefix: "parametrizations" not in prefix.split(".")
    )
    return plain


class _Entry(NamedTuple):
    """An original in a state dict."""

    key: str
    prefix: str  # of its module, with the dot
    tensor_name: str
    parametrization: NegativeDiagonal


def _registered(model: nn.Module, state: dict[str, Any]) -> Iterator[_Entry]:
    """The originals in the state dict, by their path or, where a wrapper renames, by identity."""
    by_path: dict[str, tuple[str, NegativeDiagonal]] = {}
    by_identity: dict[int, tuple[str, NegativeDiagonal]] = {}
    names = {path: name for name, path, _ in named_owners(model)}
    for path, owner in model.named_modules(remove_duplicate=False):
        for tensor_name, parametrization in lookup.ours(owner).items():
            if not lookup.is_alone(owner, tensor_name):
                raise ValueError(
                    f"{joined(path, tensor_name)}: expected no other parametrization beside the "
                    f"negative diagonal, found {lookup.lists(owner)[tensor_name]}"
                )
            mine = tensor_name, parametrization
            for prefix in (path, names.get(path, path)):
                by_path[joined(prefix, f"parametrizations.{tensor_name}.original")] = mine
            by_identity[id(lookup.originals(owner, tensor_name)[0])] = mine
    for key, value in state.items():
        entry = by_path.get(key) or by_identity.get(id(value))
        if entry is not None:
            prefix = key.removesuffix(f"parametrizations.{entry[0]}.original")
            yield _Entry(key, prefix, *entry)


def _in_order(keys: list[str], entries: dict[str, Any], found: list[_Entry]) -> Iterator[str]:
    """The keys of ``entries`` in the order of the stock model.

    There the tensors of a module come before those of its submodules, and so do ours again.
    """
    groups: dict[str, dict[str, None]] = {}
    for entry in found:
        own = [key for key in entries if joined(key.rpartition(".")[0], "") == entry.prefix]
        order = groups.setdefault(entry.prefix, dict.fromkeys(own))
        lookup.sort(order, [f"{entry.prefix}{name}" for name in entry.parametrization.record.order])
    done: set[str] = set()
    for key in keys:
        for prefix in [prefix for prefix in groups if key.startswith(prefix)]:
            done.update(group := groups.pop(prefix))
            yield from group
        if key in entries and key not in done:
            yield key


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
