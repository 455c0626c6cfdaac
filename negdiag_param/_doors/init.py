"""``torch.nn.init`` functions for registered tensors."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from negdiag_param._doors import targets
from negdiag_param._life import lookup
from negdiag_param._life.assign import carry_out, writes
from negdiag_param._parametrization.invert import summary
from negdiag_param._private import has_values
from negdiag_param._ranks import agreement, shards

M = TypeVar("M", bound=nn.Module)


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
        targets.check_whole(target)
        with torch.no_grad():
            value = targets.gathered(target).clone()
            before = value.clone()
            with agreement.together(target.stored, target.name):
                result = initializer(value, *args, **kwargs)
                unchanged = has_values(value) and value.equal(before)
                if unchanged and isinstance(result, Tensor) and not _same_memory(value, result):
                    raise ValueError(
                        f"initializer: expected a callable that fills its tensor in place, got one "
                        f"that left it as it was and returned another, {summary(result)}"
                    )
            value = shards.of_first_rank(value, target.stored[0])
        options = lookup.ours(target.owner)[target.tensor_name].options
        changes += writes(target.owner, target.tensor_name, value, options.at_registration)
    carry_out(changes)
    return module


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
