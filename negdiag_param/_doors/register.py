"""Registering and removing: find, plan, attach; all or nothing."""

from typing import TypeVar

from torch import nn
from typing_extensions import Unpack

from negdiag_param._doors import plan, targets, ties
from negdiag_param._doors.rollback import restored_on_failure
from negdiag_param._doors.targets import Target
from negdiag_param._life import attachment
from negdiag_param._parametrizations.options import MapOptionsDict, options_shown
from negdiag_param._ranks import agreement, shards
from negdiag_param._torch_private import is_managed_by_fsdp

M = TypeVar("M", bound=nn.Module)


@options_shown
def register_negative_diagonal(
    module: M,
    tensor_name: str = "weight",
    *,
    map: plan.Map = "clamp",
    **options: Unpack[MapOptionsDict],
) -> M:
    r"""Keeps the diagonal of a layer's weight negative throughout training, in one line.

    .. math::
        W_{ii} = -\bigl(\text{margin} + f(X_{ii})\bigr), \qquad W_{ij} = X_{ij} \quad (i \ne j)

    with a positive ``f``, by default nearly ``|x|``. In plain words: ``module.weight`` becomes a
    function of an unconstrained tensor, which the optimizer trains; its diagonal is negative at
    every step and everything else is free. The parameter object stays the same, so an optimizer
    made before still works. Assigning to ``module.weight`` sets the weight to that value; a
    parameter is copied, not tied. Writing into it in place (``nn.init.zeros_(module.weight)``)
    has no effect: use :func:`init_`.

    Shape:
        - Linear: the diagonal of min(rows, columns) entries. Convolutions: the kernels from each
          channel to itself, per group. LSTM and GRU ``weight_hh*``: each gate's own diagonal.

    Initial value: the weight's own, with positive diagonal entries reflected, ``d -> -|d|``. An
    entry on or inside the boundary, such as a zero, starts at ``-(margin + 1e-3)``.

    Args:
        module: the module that holds the tensor, itself or in a submodule.
        tensor_name: a name (``"weight"``), a dotted name (``"encoder.0.weight"``) or a
            shell-style pattern over the names of ``module.named_parameters()``
            (``"encoder.*.weight"``), which skips tensors of one dimension, but takes rectangular
            ones, such as a readout's.
        map: ``"clamp"``, ``"exp"``, ``"softplus"``, ``"square"``, ``"sign_flip"``, a
            :class:`NegativeDiagonal` class, an instance (used as a template, with its own
            options), or a ``torch.distributions`` transform from the reals to the negative numbers.
        margin: every diagonal entry is at most ``-margin``, and strictly negative.
        dims: the row and the column dimension; ``()`` makes every entry a diagonal entry. None
            means ``()`` for one dimension and ``(0, 1)`` for two and for convolutions; other
            tensors must say.
        taps: ``"all"`` kernel positions of a convolution, or ``"center"``, which for stride 1 and
            "same" zero padding is the main diagonal of the convolution written as a matrix.
        blocks: how many matrices are stacked along the rows, each with its own diagonal. None
            infers the groups of a convolution and the gates of ``weight_hh*``; otherwise 1.
        infeasible: what a later assignment does with diagonal entries that are not below
            ``-margin``: ``"warn"`` reflects and warns, ``"reflect"`` is silent, ``"error"``
            raises, here as well.
        cache_in_eval: in eval mode without gradients, compute the weight once and reuse it until
            the original changes. Writes through ``.data`` go unnoticed.
        options: what else the map takes: ``beta`` of ``"softplus"`` (1.0).

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
    found = targets.find(module, tensor_name)
    template = plan.template(map, **options)
    if targets.is_pattern(tensor_name, found) and template.options.dims != ():
        found = [target for target in found if target.ndim > 1]
        if not found:
            targets.refuse_no_match(module, tensor_name, "a diagonal")
    for target in found:
        _check_unmanaged(target, "not sharded yet", f"the order is {shards.ORDER}")
    with agreement.together(targets.stored(found), tensor_name):
        plans = [(target, plan.planned(target, template)) for target in found]
        ties.check_untied(module, found, "registering would rewrite both")
        ties.check_kept_nowhere_else(found)
    with restored_on_failure(target.owner for target in found):
        for target, parametrization in plans:
            with agreement.together(target.stored, target.name):
                attachment.attach(target.owner, target.tensor_name, parametrization)
    return module


def remove_negative_diagonal(module: M, tensor_name: str = "weight") -> M:
    """Bakes the current value in and leaves a stock module behind.

    In plain words: the layer gets its first class back, the same parameter object holds what the
    last forward pass saw, bit for bit, and no hook remains. From then on the diagonal is free.

    Args:
        module: the module that was registered, or one that contains it.
        tensor_name: a name, a dotted name or a shell-style pattern, as for
            :func:`register_negative_diagonal`.

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
    for target in found:
        instead = "load plain_state_dict(model) into a model without the negative diagonal instead"
        _check_unmanaged(target, "not sharded", instead)
    ties.check_untied(module, found, "removing would bake the value in twice")
    with (
        restored_on_failure(target.owner for target in found),
        agreement.together(targets.stored(found), tensor_name),
    ):
        for target in found:
            attachment.detach(target.owner, target.tensor_name)
    return module


def _check_unmanaged(target: Target, expected: str, advice: str) -> None:
    """Refuses a module whose parameters are in the hands of ``fully_shard``.

    Raises:
        ValueError: if they are.
    """
    if is_managed_by_fsdp(target.owner):
        raise ValueError(
            f"{target.name}: expected a module that is {expected}, got a "
            f"{type(target.owner).__name__} that fully_shard or FullyShardedDataParallel manages; "
            f"{advice}"
        )
