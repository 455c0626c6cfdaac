"""What is done with a registered model: its diagonals, initialisation, plain checkpoints."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._doors import checks, targets
from negdiag_param._doors.targets import Target
from negdiag_param._life import lookup
from negdiag_param._life.assign import carry_out, writes
from negdiag_param._life.lookup import joined
from negdiag_param._parametrization.invert import summary
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._ranks import agreement, shards

M = TypeVar("M", bound=nn.Module)


def negative_diagonals(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterates over the name and the diagonal of every registered tensor of a model.

    In plain words: use it to log the diagonals during training, or to penalise them. They are
    differentiable and cost O(n) each, since the rest of the weight is not computed.

    Args:
        model: any module; its registered tensors are found within it.

    Returns:
        An iterator over the name of the tensor and its diagonal, shaped as ``weight.diagonal()``
        for a matrix. A distributed tensor is gathered for it, so every rank has to take part.
        Wrappers such as ``torch.compile`` do not change the names. Empty if nothing is registered.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> [(name, tuple(diagonal.shape)) for name, diagonal in negative_diagonals(model)]
        [('0.weight', (2,)), ('2.weight', (2,))]
        >>> sum(diagonal.square().sum() for _, diagonal in negative_diagonals(model)).backward()
    """
    found = targets.every(targets.checked(model, "model"))
    return ((target.name, _diagonal(target)) for target in found if target.ours is not None)


def _diagonal(target: Target) -> Tensor:
    _check_whole(target)
    owner, tensor_name = target.owner, target.tensor_name
    ours: NegativeDiagonal = target.ours
    modules = lookup.lists(owner)[tensor_name], ours
    if lookup.is_alone(owner, tensor_name) and all(map(_private.is_just_forward, modules)):
        return ours.entries(target.stored[0])
    with agreement.together(target.stored, target.name):
        value = target.tensor
    return ours.options.diagonal.view(shards.whole(value))


def init_(
    module: M, tensor_name: str, initializer: Callable[..., Any], *args: Any, **kwargs: Any
) -> M:
    """Runs an initializer, such as one of ``torch.nn.init``, on a registered tensor.

    In plain words: the initializer fills a plain tensor in place, and the weight is set to that;
    diagonal entries that are not below ``-margin`` are changed silently, as
    :func:`register_negative_diagonal` does it. Calling the initializer on ``module.weight`` itself
    has no effect, since that is computed anew each time it is read.

    Args:
        module: the module that was registered, or one that contains it.
        tensor_name: as for :func:`register_negative_diagonal`: ``"weight"``,
            ``"encoder.0.weight"``, or ``"*"`` for all registered tensors.
        initializer: any callable that fills the tensor given first in place:
            ``nn.init.orthogonal_``.
        *args: further arguments for ``initializer``: ``0.5`` for ``nn.init.constant_``.
        **kwargs: keyword arguments for ``initializer``: ``gain=2.0``.

    Returns:
        ``module``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a tensor is not there or not registered, or the initializer makes a NaN, an
            infinity or, with ``infeasible="error"``, an infeasible diagonal entry. Nothing has
            changed then.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(3, 3))
        >>> layer = init_(layer, "weight", nn.init.constant_, 0.5)
        >>> print(layer.weight.detach())
        tensor([[-0.5000,  0.5000,  0.5000],
                [ 0.5000, -0.5000,  0.5000],
                [ 0.5000,  0.5000, -0.5000]])
    """
    found = targets.find_registered(module, tensor_name)
    if not callable(initializer):
        raise TypeError(f"initializer: expected a callable, got {type(initializer).__name__}")
    changes: list[tuple[Tensor, Tensor]] = []
    for target in found:
        _check_whole(target)
        with torch.no_grad():
            with agreement.together(target.stored, target.name):
                value = target.tensor
            value = shards.whole(value).clone()
            before = value.clone()
            with agreement.together(target.stored, target.name):
                result = initializer(value, *args, **kwargs)
                unchanged = _private.has_values(value) and value.equal(before)
                if unchanged and isinstance(result, Tensor) and not checks.share(value, result):
                    raise ValueError(
                        f"initializer: expected a callable that fills its tensor in place, got one "
                        f"that left it as it was and returned another, {summary(result)}"
                    )
            value = shards.of_first_rank(value, target.stored[0])
        policy = target.ours.options.at_registration
        changes += writes(target.owner, target.tensor_name, value, policy)
    carry_out(changes)
    return module


def _check_whole(target: Target) -> None:
    """Refuses an original that FullyShardedDataParallel has flattened or freed."""
    original, ndim = target.stored[0], target.ours.record.ndim
    flat = ndim is not None and original.ndim != ndim
    plain = type(original) in (Tensor, nn.Parameter) and not original.is_meta
    freed = plain and original.numel() > 0 and original.untyped_storage().nbytes() == 0
    if flat or freed:
        raise ValueError(
            f"{target.name}: expected a tensor of {ndim} dimensions, got what is left of it "
            f"outside of a forward pass, {summary(original)}; go "
            f"within FullyShardedDataParallel.summon_full_params(model)"
        )


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
    replaced: tuple[str, ...] = ()
    for name, path, owner in targets.named_owners(model):
        for tensor_name, ours in lookup.ours(owner).items():
            if not lookup.is_alone(owner, tensor_name):
                raise ValueError(
                    f"{joined(path, tensor_name)}: expected no other parametrization beside the "
                    f"negative diagonal, found {lookup.lists(owner)[tensor_name]}"
                )
            # Wrappers rename keys, so an original is known by itself too.
            inside = f"parametrizations.{tensor_name}."
            keys = [joined(above, f"{inside}original") for above in (name, path)]
            original = lookup.originals(owner, tensor_name)[0]
            for key in [key for key, value in state.items() if key in keys or value is original]:
                if type(state[key]).__name__ == "ShardedTensor":
                    raise ValueError(
                        f"{key}: expected a whole tensor in the state dict, got a ShardedTensor, "
                        f"as FullyShardedDataParallel gives for StateDictType.SHARDED_STATE_DICT; "
                        f"go within FullyShardedDataParallel.state_dict_type(model, "
                        f"StateDictType.FULL_STATE_DICT)"
                    )
                prefix = key.removesuffix(f"{inside}original")
                replaced += (f"{prefix}{inside}",)
                with torch.no_grad():
                    entries[f"{prefix}{tensor_name}"] = ours(state[key])
                # In the stock model the tensors of a module come before those of its submodules.
                first = next(i for i, other in enumerate(state) if other.startswith(prefix))
                for rank, own in enumerate(dict.fromkeys((*ours.record.order, tensor_name))):
                    places[f"{prefix}{own}"] = first, len(prefix), rank
    kept = [key for key in entries if not key.startswith(replaced)]
    plain = OrderedDict((key, entries[key]) for key in sorted(kept, key=places.__getitem__))
    _private.keep_metadata(state, plain, wanted=lambda at: "parametrizations" not in at.split("."))
    return plain
