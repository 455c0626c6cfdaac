"""From a value to the originals that give it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import _torch_private
from negdiag_param._callers import is_substituting
from negdiag_param._life import lookup
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.invert import dense
from negdiag_param._ranks import shards


class Write(NamedTuple):
    """An original and what it is to hold. Nothing changes before :meth:`carry_out`."""

    target: Tensor
    source: Tensor

    def carry_out(self) -> None:
        """Writes in place: the original keeps its storage and its strides."""
        with torch.no_grad():
            self.target.copy_(shards.like(self.source, self.target))


def assign(
    module: nn.Module, tensor_name: str, value: Tensor, infeasible: Infeasible | None = None
) -> None:
    """Sets the originals so that the tensor is ``value``; changes nothing if that cannot be."""
    for write in writes(module, tensor_name, value, infeasible):
        write.carry_out()


def silent_writes(module: nn.Module, tensor_name: str, value: Tensor) -> list[Write]:
    """As a registration does it: infeasible entries are reflected without a warning."""
    policies = [p.options.at_registration for p in [lookup.find(module, tensor_name)] if p]
    return writes(module, tensor_name, value, *policies)


def writes(
    module: nn.Module, tensor_name: str, value: Tensor, infeasible: Infeasible | None = None
) -> list[Write]:
    """What has to be written for the tensor to be ``value``.

    Raises:
        RuntimeError: under a ``torch.func`` transform or in ``functional_call``.
        ValueError: if shape, dtype or device differ, or a parametrization has no right_inverse.
    """
    if _torch_private.function_transforms_active(if_unknown=False) or is_substituting():
        raise RuntimeError(
            f"{tensor_name}: expected no assignment inside a torch.func transform or "
            f"functional_call, got one; give functional_call the key "
            f"parametrizations.{tensor_name}.original instead"
        )
    parametrizations = lookup.lists(module)[tensor_name]
    targets = lookup.originals(module, tensor_name)
    ours = lookup.find(module, tensor_name)
    if _torch_private.is_managed_by_fsdp(parametrizations):
        # What fully_shard has sharded lies on a mesh of more dimensions than before.
        before = ours.record.mesh_dims if ours else 0
        if any(shards.mesh_dims(target) <= before for target in targets):
            raise ValueError(
                f"{tensor_name}: expected a sharded tensor to assign to, got the gathered one of a "
                f"forward pass, which would lose the value; call reshard() on the module given to "
                f"fully_shard first, or assign before FullyShardedDataParallel wraps the model"
            )
    if isinstance(value, Tensor) and len(targets) == 1:
        dense(value, tensor_name)
        value = shards.aligned(value, targets[0])
        expected, found = _summary(targets[0]), _summary(value)
        if expected != found:
            raise ValueError(f"{tensor_name}: expected a tensor of {expected}, got {found}")
    with torch.no_grad():
        sources = _inverted(value, list(parametrizations.children()), infeasible, tensor_name)
    if [source.shape for source in sources] != [target.shape for target in targets]:
        raise ValueError(
            f"{tensor_name}: expected originals of shapes {[tuple(t.shape) for t in targets]}, "
            f"got {[tuple(s.shape) for s in sources]}"
        )
    return [Write(*pair) for pair in zip(targets, sources, strict=True)]


def _inverted(
    value: Any, parametrizations: list[nn.Module], infeasible: Infeasible | None, name: str
) -> list[Tensor]:
    """The originals that a list of parametrizations maps to ``value``."""
    for parametrization in reversed(parametrizations):
        if isinstance(parametrization, NegativeDiagonal):
            value = parametrization.right_inverse(value, infeasible)
        elif hasattr(parametrization, "right_inverse"):
            value = parametrization.right_inverse(value)  # type: ignore[operator]
        else:
            raise ValueError(
                f"{name}: expected parametrizations with a right_inverse, "
                f"got {type(parametrization).__name__}"
            )
    return [value] if isinstance(value, Tensor) else list(value)


def _summary(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
