"""From a value to the originals that give it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._callers import is_substituting
from negdiag_param._life import lookup
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._parametrization.invert import dense, named, summary
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._ranks import shards


class Write(NamedTuple):
    """An original and what it is to hold. Nothing changes before :meth:`carry_out`."""

    target: Tensor
    source: Tensor

    def carry_out(self) -> None:
        """Writes in place: the original keeps its storage and its strides."""
        with torch.no_grad():
            self.target.copy_(shards.like(self.source, self.target))


def assign(module: nn.Module, tensor_name: str, value: Tensor) -> None:
    """Sets the originals so that the tensor is ``value``; changes nothing if that cannot be."""
    for write in writes(module, tensor_name, value):
        write.carry_out()


def silent_writes(module: nn.Module, tensor_name: str, value: Tensor) -> list[Write]:
    """As a registration does it: infeasible entries are reflected without a warning."""
    ours = lookup.find(module, tensor_name)
    return writes(module, tensor_name, value, ours.options.at_registration if ours else None)


def writes(
    module: nn.Module, tensor_name: str, value: Tensor, infeasible: Infeasible | None = None
) -> list[Write]:
    """What has to be written for the tensor to be ``value``."""
    if _private.function_transforms_active(if_unknown=False) or is_substituting():
        raise RuntimeError(
            f"{tensor_name}: expected no assignment inside a torch.func transform or "
            f"functional_call, got one; give functional_call the key "
            f"parametrizations.{tensor_name}.original instead"
        )
    parametrizations = lookup.lists(module)[tensor_name]
    targets = lookup.originals(module, tensor_name)
    ours = lookup.find(module, tensor_name)
    with named(tensor_name):
        # What fully_shard has sharded lies on a mesh of more dimensions than before.
        before = ours.record.mesh_dims if ours else 0
        if _private.is_managed_by_fsdp(parametrizations) and any(
            shards.mesh_dims(target) <= before for target in targets
        ):
            raise ValueError(
                "expected a sharded tensor to assign to, got the gathered one of a forward pass, "
                "which would lose the value; call reshard() on the module given to fully_shard "
                "first, or assign before FullyShardedDataParallel wraps the model"
            )
        if isinstance(value, Tensor) and len(targets) == 1:
            value = shards.aligned(dense(value), targets[0])
            expected, got = (f"{summary(t)} on {t.device}" for t in (targets[0], value))
            if expected != got:
                raise ValueError(f"expected a tensor of {expected}, got {got}")
        missing = [p for p in parametrizations.children() if not hasattr(p, "right_inverse")]
        if missing:
            raise ValueError(
                f"expected parametrizations with a right_inverse, got {type(missing[0]).__name__}"
            )
    sources: Any = value
    with torch.no_grad():
        for parametrization in reversed(list(parametrizations.children())):
            if isinstance(parametrization, NegativeDiagonal):
                sources = parametrization.right_inverse(sources, infeasible)
            else:
                sources = parametrization.right_inverse(sources)  # type: ignore[operator]
    sources = [sources] if isinstance(sources, Tensor) else list(sources)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (targets, sources)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{tensor_name}: expected originals of shapes {shapes[0]}, got {shapes[1]}"
        )
    return [Write(*pair) for pair in zip(targets, sources, strict=True)]
