"""The only place that reads private PyTorch names, each with what happens once it is gone."""

import warnings
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


@lru_cache
def _warn_once(missing: str, consequence: str) -> None:
    warnings.warn(
        f"negdiag_param does not know this PyTorch ({torch.__version__}): {missing} is gone, "
        f"so {consequence}.",
        RuntimeWarning,
        stacklevel=3,
    )


def function_transforms_active() -> bool:
    """Whether a ``torch.func`` transform runs. If unknown: yes, which is right and slower."""
    try:
        return torch._C._are_functorch_transforms_active()
    except AttributeError:
        _warn_once("torch._C._are_functorch_transforms_active", "eager mode is slower")
        return True


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than ``forward``. If unknown: yes, which is slower."""
    try:
        return bool(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
    except AttributeError:
        _warn_once("nn.Module._forward_hooks", "small layers are slower")
        return True


def cached_block() -> MutableMapping[Any, Any] | None:
    """The store of the ``parametrize.cached()`` block that runs; None outside, or if unknown."""
    try:
        return parametrize._cache if parametrize._cache_enabled else None
    except AttributeError:
        _warn_once("parametrize._cache", "parametrize.cached() recomputes instead of caching")
        return None


def is_managed_by_fsdp(module: nn.Module) -> bool:
    """Whether ``fully_shard`` swaps the parameters of ``module``. If unknown: no.

    Dynamo reads this mark too.
    """
    return vars(module).get("_is_fsdp_managed_module", False) is True
