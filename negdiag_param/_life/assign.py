"""Assignment: the originals that give a value, and how they are written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._life import lookup
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._parametrization.invert import dense, described, summary
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._private import is_substituting
from negdiag_param._ranks import shards


def assign(module: nn.Module, tensor_name: str, value: Any) -> None:
    """Sets the originals so that the tensor is ``value``; changes nothing if that cannot be."""
    if tensor_name in lookup.ours(module):
        carry_out(writes(module, tensor_name, value))
    else:
        lookup.lists(module)[tensor_name].right_inverse(value)  # type: ignore[operator]


def carry_out(changes: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Writes each second tensor into the first, which keeps its storage; all of them or none."""
    with torch.no_grad():
        pairs = [(original, shards.like(value, original)) for original, value in changes]
        with kept(original for original, _ in pairs if len(pairs) > 1):
            for original, value in pairs:
                original.copy_(value)


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restores the values of the tensors if the block fails."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise


def writes(
    module: nn.Module, tensor_name: str, value: object, infeasible: Infeasible | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Each original of a tensor, with what to write into it so that the tensor is ``value``."""
    if _private.function_transforms_active(if_unknown=False) or is_substituting():
        raise RuntimeError(
            f"{tensor_name}: expected no assignment inside a torch.func transform or "
            f"functional_call, got one; give functional_call the key "
            f"parametrizations.{tensor_name}.original instead"
        )
    chain, originals = lookup.lists(module)[tensor_name], lookup.originals(module, tensor_name)
    parametrizations: list[Any] = [*chain.children()]
    ours = lookup.ours(module).get(tensor_name)
    with described(tensor_name):
        # What fully_shard has sharded lies on a mesh of more dimensions than before.
        if (
            ours is not None
            and _private.is_managed_by_fsdp(chain)
            and any(shards.mesh_dims(original) <= ours.record.mesh_dims for original in originals)
        ):
            raise ValueError(
                "expected a sharded tensor to assign to, got the gathered one of a forward pass, "
                "which would lose the value; call reshard() on the module given to fully_shard "
                "first, or assign before FullyShardedDataParallel wraps the model"
            )
        sources: Any = dense(value)
        expected, got = str(originals[0].dtype), str(sources.dtype)
        if len(originals) == 1:
            sources = shards.aligned(sources, originals[0])
            expected, got = (f"{summary(t)} on {t.device}" for t in (originals[0], sources))
        if expected != got:
            raise ValueError(f"expected a tensor of {expected}, got {got}")
    scalings: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for parametrization in reversed(parametrizations):
            if isinstance(parametrization, NegativeDiagonal):
                sources, scaling = parametrization._inverted(sources, infeasible)  # noqa: SLF001
                scalings += scaling
            elif hasattr(parametrization, "right_inverse"):
                sources = parametrization.right_inverse(sources)
            else:
                raise ValueError(
                    f"{tensor_name}: expected parametrizations with a right_inverse, got "
                    f"{type(parametrization).__name__}"
                )
    sources = [sources] if isinstance(sources, Tensor) else list(sources)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (originals, sources)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{tensor_name}: expected originals of shapes {shapes[0]}, got {shapes[1]}"
        )
    return [*zip(originals, sources, strict=True), *scalings]
