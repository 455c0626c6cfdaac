"""From a value to the originals that give it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._callers import is_substituting
from negdiag_param._life import lookup
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._parametrization.invert import dense, named, summary
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._private import own_parameters
from negdiag_param._ranks import shards


def assign(module: nn.Module, tensor_name: str, value: Tensor) -> None:
    """Sets the originals so that the tensor is ``value``; changes nothing if that cannot be."""
    carry_out(writes(module, tensor_name, value))


def carry_out(changes: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Writes each second tensor into the first, which keeps its storage and its strides."""
    with torch.no_grad():
        pairs = [(original, shards.like(value, original)) for original, value in changes]
        before = [original.clone() for original, _ in pairs] if len(pairs) > 1 else []
        try:
            for original, value in pairs:
                original.copy_(value)
        except BaseException:
            for (original, _), value in zip(pairs, before, strict=False):
                original.copy_(value)
            raise


def writes(
    module: nn.Module, tensor_name: str, value: Tensor, infeasible: Infeasible | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The originals of a tensor, and what they have to hold for it to be ``value``."""
    if _private.function_transforms_active(if_unknown=False) or is_substituting():
        raise RuntimeError(
            f"{tensor_name}: expected no assignment inside a torch.func transform or "
            f"functional_call, got one; give functional_call the key "
            f"parametrizations.{tensor_name}.original instead"
        )
    found = lookup.lists(module)[tensor_name]
    parametrizations: list[Any] = [*found.children()][::-1]
    targets, ours = lookup.originals(module, tensor_name), lookup.ours(module).get(tensor_name)
    with named(tensor_name):
        # What fully_shard has sharded lies on a mesh of more dimensions than before.
        before = ours.record.mesh_dims if ours else 0
        if _private.is_managed_by_fsdp(found) and any(
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
        elif isinstance(value, Tensor) and value.dtype != targets[0].dtype:
            raise ValueError(f"expected a tensor of {targets[0].dtype}, got {summary(value)}")
        for parametrization in parametrizations:
            if not hasattr(parametrization, "right_inverse"):
                raise ValueError(
                    f"expected parametrizations with a right_inverse, got "
                    f"{type(parametrization).__name__}"
                )
    sources: Any = value
    others: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for parametrization in parametrizations:
            if isinstance(parametrization, NegativeDiagonal):
                sources, scaling = inverse(parametrization, sources, infeasible)
                others += scaling
            else:
                sources = parametrization.right_inverse(sources)
    sources = [sources] if isinstance(sources, Tensor) else list(sources)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (targets, sources)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{tensor_name}: expected originals of shapes {shapes[0]}, got {shapes[1]}"
        )
    return [*zip(targets, sources, strict=True), *others]


def inverse(
    parametrization: NegativeDiagonal, value: Tensor, infeasible: Infeasible | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The original for ``value``, and what the scaling has to hold, which is not written yet."""
    scaled = parametrization.options.dominance == "scaled"
    eta = own_parameters(parametrization).get("eta")
    if not scaled or eta is None:
        return parametrization.right_inverse(value, infeasible), []
    before = eta.detach().clone()
    try:
        original = parametrization.right_inverse(value, infeasible)
        return original, [(eta, eta.detach().clone())]
    finally:
        eta.copy_(before)
