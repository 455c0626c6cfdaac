"""The checkpoint that the stock model would write."""

from collections import OrderedDict
from collections.abc import Iterator
from math import inf
from typing import Any

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

    In plain words: a checkpoint for those who do not use this package. Every registered tensor
    stands under its own name with its current value, so the result loads with ``strict=True``
    into a stock model, and into a registered one.

    Args:
        model: any module; its registered tensors are found within it.

    Returns:
        A new dict with detached tensors, in the order of the stock model.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if a registered tensor carries parametrizations beside ours, or
            FullyShardedDataParallel gives shards of it in place of the whole.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> list(plain_state_dict(model))
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    state = targets.checked(model, "model").state_dict(keep_vars=True)
    entries = {k: v.detach() if isinstance(v, Tensor) else v for k, v in state.items()}
    places: dict[str, tuple[float, ...]] = {key: (i, inf) for i, key in enumerate(state)}
    ours: tuple[str, ...] = ()
    for key, tensor_name, parametrization in _registered(model, state):
        inside = f"parametrizations.{tensor_name}."
        prefix = key.removesuffix(f"{inside}original")
        ours += (f"{prefix}{inside}",)
        if type(state[key]).__name__ == "ShardedTensor":
            raise ValueError(
                f"{key}: expected a whole tensor in the state dict, got a ShardedTensor, as "
                f"FullyShardedDataParallel gives for StateDictType.SHARDED_STATE_DICT; go within "
                f"FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT)"
            )
        with torch.no_grad():
            entries[f"{prefix}{tensor_name}"] = parametrization(state[key])
        # In the stock model the tensors of a module come before those of its submodules.
        first = next(i for i, other in enumerate(state) if other.startswith(prefix))
        for rank, name in enumerate(dict.fromkeys((*parametrization.record.order, tensor_name))):
            places[f"{prefix}{name}"] = first, len(prefix), rank
    kept = [key for key in entries if not key.startswith(ours)]
    plain = OrderedDict((key, entries[key]) for key in sorted(kept, key=places.__getitem__))
    _private.keep_metadata(
        state, plain, wanted=lambda prefix: "parametrizations" not in prefix.split(".")
    )
    return plain


def _registered(
    model: nn.Module, state: dict[str, Any]
) -> Iterator[tuple[str, str, NegativeDiagonal]]:
    """The keys of originals in the state dict, with the tensors' names and parametrizations."""
    known: dict[str | int, tuple[str, NegativeDiagonal]] = {}
    for name, path, owner in named_owners(model):
        for tensor_name, parametrization in lookup.ours(owner).items():
            if not lookup.is_alone(owner, tensor_name):
                raise ValueError(
                    f"{joined(path, tensor_name)}: expected no other parametrization beside the "
                    f"negative diagonal, found {lookup.lists(owner)[tensor_name]}"
                )
            # Wrappers rename keys, so an original is known by itself too.
            inside = f"parametrizations.{tensor_name}.original"
            original = lookup.originals(owner, tensor_name)[0]
            for key in (joined(name, inside), joined(path, inside), id(original)):
                known[key] = tensor_name, parametrization
    for key, value in state.items():
        mine = known.get(key) or known.get(id(value))
        if mine:
            yield key, *mine
