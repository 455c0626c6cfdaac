"""The public functions: each finds its tensors, prepares all that can fail, then assigns."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Unpack

from negdiag_param import _private
from negdiag_param._doors import checks, targets
from negdiag_param._doors.targets import Target
from negdiag_param._life import assign, attach, lookup
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._parametrization.invert import check, described, summary
from negdiag_param._parametrization.options import MapOptionsDict, options_shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal, Record
from negdiag_param._parametrization.parse import Map, parse
from negdiag_param._ranks import agreement, shards

M = TypeVar("M", bound=nn.Module)


@options_shown
def register_negative_diagonal(
    module: M,
    tensor_name: str = "weight",
    *,
    map: Map = "clamp",
    **options: Unpack[MapOptionsDict],
) -> M:
    r"""Keeps the diagonal of a layer's weight negative throughout training.

    .. math::
        W_{ii} = \operatorname{map}(X_{ii}) \le -\text{margin},
        \qquad W_{ij} = X_{ij} \quad (i \ne j)

    In plain words: from now on, ``module.weight`` is computed from another tensor, the original
    ``X``, which the optimizer trains. Its diagonal is negative at every step, and all other
    entries are those of the original. The original is the parameter that the weight was before,
    so an optimizer made earlier still works.

    To set the weight, assign to it: ``module.weight = value`` copies the values, also those of a
    parameter. Writing into it in place, as ``nn.init.zeros_(module.weight)`` does, has no effect;
    use :func:`init_`.

    Shape:
        - Linear: the diagonal of min(rows, columns) entries. Convolutions: the kernels from each
          channel to itself, per group. LSTM and GRU ``weight_hh*``: each gate's own diagonal.

    Initial value: the weight's own. Diagonal entries that are not allowed are changed silently,
    since half of a default initialisation is positive:

        - a positive entry is reflected, ``d -> -|d|``: 0.3 becomes -0.3;
        - an entry that is then still not below ``-margin``, such as 0, or -0.02 or 0.02 with
          ``margin=0.1``, is set just below it, to ``-(margin + 1e-3)``;
        - with ``dominance``, entries are instead lowered as far as their rows or columns need,
          which is far for a layer initialised as usual.

    Args:
        module: the module that holds the tensor, itself or in a submodule.
        tensor_name: a name (``"weight"``), a dotted name (``"encoder.0.weight"``) or a
            shell-style pattern over the names of ``module.named_parameters()``
            (``"encoder.*.weight"``). A pattern skips tensors of one dimension, but takes
            rectangular ones, such as a readout's.
        map: how the diagonal is kept negative: ``"clamp"``, ``"exp"``, ``"softplus"``,
            ``"square"``, ``"sign_flip"``, a :class:`NegativeDiagonal` class, an instance (used as
            a template, with its own options), or a ``torch.distributions`` transform from the
            reals to the negative numbers. The default is ``min(x, -margin)``, see
            :class:`ClampDiagonal`.
        margin: how far below zero the diagonal stays: with ``margin=0.1`` every entry is at most
            -0.1. With 0 every entry is strictly negative.
        dims: the row and the column dimension: ``dims=(-2, -1)`` for a batch of matrices.
            ``dims=()`` makes every entry a diagonal entry. None means ``()`` for one dimension
            and ``(0, 1)`` for two and for convolutions; other tensors must say.
        taps: which positions of a convolution's kernel are on the diagonal: ``"all"``, or
            ``"center"``, the main diagonal of the convolution written as a matrix, for stride 1
            and "same" zero padding.
        blocks: how many matrices are stacked along the rows, each with its own diagonal:
            ``blocks=3`` for ``in_proj_weight`` of ``nn.MultiheadAttention``. None infers the
            groups of a convolution and the gates of ``weight_hh*``, and is 1 otherwise.
        dominance: ``"rows"``, ``"columns"`` or ``"scaled"``: the diagonal outweighs the other
            entries of its row or column, so that ``x' = W x`` is stable; see
            :class:`NegativeDiagonal`. ``"scaled"`` adds a parameter, ``eta``, which an optimizer
            made before does not hold: give it
            ``optimizer.add_param_group({"params": module.parametrizations.weight[0].eta})``.
        infeasible: what assigning a diagonal entry that is not below ``-margin`` does later:
            ``"warn"`` changes it as above and warns, with counts; ``"reflect"`` changes it
            silently; ``"error"`` raises, at registration too. Under ``"warn"``, registering warns
            of entries that it moves if all were negative, and they are eight or more, or equal:
            those of a default initialisation hardly ever are.
        cache_in_eval: in eval mode without gradients, compute the weight once and reuse it until
            the original changes. Writes through ``.data`` go unnoticed, hence off by default.
        options: what else the map takes: ``beta=10.0`` for ``"softplus"`` (1.0 by default).

    Returns:
        ``module``, with its class replaced by one that computes the weight.

    Raises:
        TypeError: if the tensor is not a dense float16, bfloat16, float32 or float64 tensor, or
            an argument is of the wrong type.
        ValueError: if there is no such tensor, it is registered already, tied to another one or
            kept elsewhere by its module, the options do not fit its shape or dtype, its diagonal
            holds NaN or infinity, or is infeasible under ``infeasible="error"``. The module is
            left as it was; that of a distributed tensor on all ranks, even if one alone fails.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(3, 3), "weight", map="softplus")
        >>> bool((layer.weight.diagonal() < 0).all())
        True
        >>> layer.weight = torch.tensor([[-1.0, 2, 3], [4, -5, 6], [7, 8, -9]])
        >>> print(layer.weight.detach())
        tensor([[-1.,  2.,  3.],
                [ 4., -5.,  6.],
                [ 7.,  8., -9.]])

    Source: https://discuss.pytorch.org/t/177339
    """
    template = parse(map, options)

    def suits(target: Target) -> bool:
        # What is lazy, or flattened by FullyShardedDataParallel, is refused below.
        refused = is_lazy(target.stored[0]) or _private.is_managed_by_fsdp(target.owner)
        return refused or template.options.dims == () or target.tensor.ndim > 1

    found = targets.find(module, tensor_name, suits, "a diagonal")
    _check_unmanaged(found, "not sharded yet", f"the order is {shards.ORDER}")
    with agreement.together((s for target in found for s in target.stored), tensor_name):
        plans = [(t.owner, t.tensor_name, *_planned(t, template)) for t in found]
        checks.check_untied(module, found, "registering would rewrite both")
        checks.check_kept_nowhere_else(found)
    changes = [attach.registration(*plan) for plan in plans]
    attach.carry_out(changes, [target.owner for target in found])
    return module


def remove_negative_diagonal(module: M, tensor_name: str = "weight") -> M:
    """Removes the parametrization; the weight keeps its current value.

    In plain words: the layer gets its own class back, ``module.weight`` is the same parameter
    object as ever and holds what the last forward pass used, bit for bit, and no hook remains.
    From then on the diagonal is free.

    Args:
        module: the module that was registered, or one that contains it.
        tensor_name: as for :func:`register_negative_diagonal`: ``"weight"``,
            ``"encoder.0.weight"``, or ``"*"`` for all registered tensors.

    Returns:
        ``module``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a tensor is not there, not registered, shares its original with another or
            cannot be baked in. The module is left as it was.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(3, 3))
        >>> weight = layer.weight
        >>> type(remove_negative_diagonal(layer)) is nn.Linear and layer.weight.equal(weight)
        True
    """
    found = targets.find_registered(module, tensor_name)
    instead = "load plain_state_dict(model) into a model without the negative diagonal instead"
    _check_unmanaged(found, "not sharded", instead)
    checks.check_untied(module, found, "removing would bake the value in twice")
    with agreement.together((s for target in found for s in target.stored), tensor_name):
        changes = [attach.removal(target.owner, target.tensor_name) for target in found]
    attach.carry_out(changes, [target.owner for target in found])
    return module


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
        changes += assign.writes(target.owner, target.tensor_name, value, policy)
    assign.carry_out(changes)
    return module


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
    known: dict[str | int, tuple[str, NegativeDiagonal]] = {}
    for name, path, owner in targets.named_owners(model):
        for tensor_name, ours in lookup.ours(owner).items():
            if not lookup.is_alone(owner, tensor_name):
                raise ValueError(
                    f"{path}{tensor_name}: expected no other parametrization beside the negative "
                    f"diagonal, found {lookup.lists(owner)[tensor_name]}"
                )
            # Wrappers rename keys, so an original is known by itself too.
            inside = f"parametrizations.{tensor_name}.original"
            original = lookup.originals(owner, tensor_name)[0]
            for key in (f"{name}{inside}", f"{path}{inside}", id(original)):
                known[key] = tensor_name, ours
    replaced: tuple[str, ...] = ()
    for place, value in state.items():
        found = known.get(place) or known.get(id(value))
        if not found:
            continue
        if type(value).__name__ == "ShardedTensor":
            raise ValueError(
                f"{place}: expected a whole tensor in the state dict, got a ShardedTensor, as "
                f"FullyShardedDataParallel gives for StateDictType.SHARDED_STATE_DICT; go within "
                f"FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT)"
            )
        tensor_name, ours = found
        replaced += (place.removesuffix("original"),)
        prefix = place.removesuffix(f"parametrizations.{tensor_name}.original")
        with torch.no_grad():
            entries[f"{prefix}{tensor_name}"] = ours(value)
        # In the stock model the tensors of a module come before those of its submodules.
        first = next(i for i, other in enumerate(state) if other.startswith(prefix))
        for rank, name in enumerate(dict.fromkeys((*ours.record.order, tensor_name))):
            places[f"{prefix}{name}"] = first, len(prefix), rank
    kept = [key for key in entries if not key.startswith(replaced)]
    plain = OrderedDict((key, entries[key]) for key in sorted(kept, key=places.__getitem__))
    _private.keep_metadata(state, plain)
    return plain


def _planned(target: Target, template: NegativeDiagonal) -> tuple[NegativeDiagonal, Tensor]:
    """The parametrization for one tensor, and the tensor, which is checked but not changed."""
    owner, options = target.owner, template.options
    with described(target.name):
        checks.check_carrier(target)
        with torch.no_grad():
            value = target.tensor.detach()
        inferred = checks.layer_blocks(target, options, value)
        check(value, options.diagonal, template.strict)
        # What the layer says of dims and blocks is written in one form only, so that checkpoints
        # of the same meaning carry the same mark.
        dims: tuple[int, ...] | None = options.diagonal.fitted(value.shape)
        blocks = options.blocks or (inferred if dims == (0, 1) else 1)
        if dims == Diagonal().fitted(value.shape) and not (options.dominance and options.dims):
            dims = None
        planned = copy.deepcopy(template)
        planned.options = replace(options, dims=dims, blocks=None if blocks == 1 else blocks)
        planned.record = Record(
            name=target.name,
            order=lookup.own_tensors(owner),
            persistent=target.tensor_name not in _private.non_persistent_buffers(owner),
            mesh_dims=shards.mesh_dims(target.stored[0]),
        )
    return planned, value


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


def _check_unmanaged(found: list[Target], expected: str, advice: str) -> None:
    for target in found:
        if _private.is_managed_by_fsdp(target.owner):
            raise ValueError(
                f"{target.name}: expected a module that is {expected}, got a "
                f"{type(target.owner).__name__} that fully_shard or FullyShardedDataParallel "
                f"manages; {advice}"
            )


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
