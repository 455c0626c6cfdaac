"""A weight that was computed before, with what tells whether it still holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._parametrization.steps import STEPS


class _Entry(NamedTuple):
    sources: tuple[Tensor, ...]
    states: list[tuple[object, ...]]
    storages: list[torch.UntypedStorage]  # kept, so that no other gets their address
    steps: int
    weight: Tensor
    weight_version: int


class WeightCache:
    """At most one weight, with the tensors it was computed from. A copy or a pickle is empty."""

    __slots__ = ("_entry",)

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type["WeightCache"], tuple[()]]:
        return WeightCache, ()

    def drop(self) -> None:
        """Forgets the weight."""
        self._entry = None

    def read(
        self, holder: nn.Module, sources: Sequence[Tensor], compute: Callable[[], Tensor]
    ) -> Tensor:
        """The weight that ``compute`` makes of ``sources``, which ``holder`` holds."""
        if torch.jit.is_tracing() or _private.dispatch_mode_active():
            return compute()  # a trace would keep what is known already as a constant
        weight = self._fresh(sources)
        if weight is not None:
            return weight
        if (
            _private.is_managed_by_fsdp(holder)
            or _private.is_exporting()
            or _private.function_transforms_active()
            # Subclasses such as DTensor and fake tensors are left alone.
            or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in sources)
        ):
            return compute()
        return self._filled(sources, compute)

    def _fresh(self, sources: Sequence[Tensor]) -> Tensor | None:
        """The weight, if it is still what ``sources`` give, and may stand for it here.

        With gradients enabled only a weight that carries them may.
        """
        entry = self._entry  # read once: another thread may drop it
        if entry is None or entry.steps != STEPS.count() or len(entry.sources) != len(sources):
            return None
        for known, source, state in zip(entry.sources, sources, entry.states, strict=True):
            if known is not source or state != _state(source):
                return None
        weight = entry.weight
        if entry.weight_version != _private.version(weight):
            return None
        if weight.requires_grad or not torch.is_grad_enabled():
            return weight
        return None if any(source.requires_grad for source in sources) else weight

    def _filled(self, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Computes the weight and keeps it."""
        STEPS.watch()
        # The states are taken before the tensors are read: if another thread writes in between,
        # the entry is stale from the start and the next reader makes its own.
        steps, states = STEPS.count(), [_state(source) for source in sources]
        storages = [source.untyped_storage() for source in sources]
        # Tensors made in inference mode have no version counter.
        with_grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
            weight = compute()
        # But for buffers: other parametrizations may write to theirs, as spectral_norm does.
        states = [
            state if isinstance(source, nn.Parameter) else _state(source)
            for source, state in zip(sources, states, strict=True)
        ]
        version = _private.version(weight)
        self._entry = _Entry(tuple(sources), states, storages, steps, weight, version)
        return weight


def _state(source: Tensor) -> tuple[object, ...]:
    """What differs once ``source`` has changed."""
    return _private.version(source), source.data_ptr(), source.dtype, source.device
