"""Registering and removing: find the tensors, prepare all that can fail, then assign."""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Unpack

from negdiag_param._doors import checks, layers, targets
from negdiag_param._doors.targets import Target
from negdiag_param._life import attach, lookup
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._parametrization.invert import check, named
from negdiag_param._parametrization.options import MapOptionsDict, options_shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal, Record
from negdiag_param._parametrization.parse import Map, parse
from negdiag_param._private import is_managed_by_fsdp, non_persistent_buffers
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
            the original changes. Writes through ``.data`` go unnoticed.
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
        refused = is_managed_by_fsdp(target.owner) or any(is_lazy(t) for t in target.stored)
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


def _planned(target: Target, template: NegativeDiagonal) -> tuple[NegativeDiagonal, Tensor]:
    """The parametrization for one tensor, and the tensor, which is checked but not changed."""
    owner, tensor_name, options = target.owner, target.tensor_name, template.options
    with named(target.name):
        checks.check_carrier(target)
        with torch.no_grad():
            value = target.tensor.detach()
        layers.check(owner, tensor_name, options, value)
        check(value, options.diagonal, template.strict)
        # What the layer says of dims and blocks is written in one form only, so that checkpoints
        # of the same meaning carry the same mark.
        dims, blocks = options.diagonal.fitted(value.shape), options.blocks
        if blocks is None and dims == (0, 1):
            blocks = layers.blocks(owner, tensor_name)
        usual = Diagonal().fitted(value.shape)
        planned = copy.deepcopy(template)
        planned.options = replace(
            options,
            dims=None if dims == usual and not (options.dominance and options.dims) else dims,
            blocks=None if blocks == 1 else blocks,
        )
        planned.record = Record(
            name=target.name,
            order=lookup.own_tensors(owner),
            persistent=tensor_name not in non_persistent_buffers(owner),
            ndim=value.ndim,
            mesh_dims=shards.mesh_dims(target.stored[0]),
        )
    return planned, value


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


def _check_unmanaged(found: list[Target], expected: str, advice: str) -> None:
    for target in found:
        if is_managed_by_fsdp(target.owner):
            raise ValueError(
                f"{target.name}: expected a module that is {expected}, got a "
                f"{type(target.owner).__name__} that fully_shard or FullyShardedDataParallel "
                f"manages; {advice}"
            )
