"""A weight that was computed before, with what tells whether it is still valid."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._parametrization.steps import STEPS


class WeightCache:
    """At most one weight, with the tensors it was computed from. A copy or a pickle is empty."""

    __slots__ = ("__weakref__", "entry", "glance")

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] | None = None  # what read compares
        self.glance: tuple[Any, ...] | None = None  # what _private.reading compares

    def __reduce__(self) -> tuple[type["WeightCache"], tuple[()]]:
        return WeightCache, ()

    def drop(self) -> None:
        """Forgets the weight."""
        self.entry = self.glance = None

    def read(
        self, holder: nn.Module, sources: Sequence[Tensor], compute: Callable[[], Tensor]
    ) -> Tensor:
        """The weight that ``compute`` makes of ``sources``, which ``holder`` holds."""
        if torch.jit.is_tracing() or _private.dispatch_mode_active():
            return compute()  # a trace would record a cached weight as a constant
        entry = self.entry  # read once: another thread may drop it
        with_grad = torch.is_grad_enabled()
        weight: Tensor
        if entry is not None:
            known, states, modules, steps, weight, version, _ = entry
            if (
                steps == STEPS.count()
                and all(map(is_, known, sources))
                and states == [_private.state(source) for source in sources]
                and modules == (*_private.own_modules(holder).values(),)
                and version == _private.version(weight)
                and (
                    weight.requires_grad
                    or not with_grad
                    or not any(source.requires_grad for source in sources)
                )
            ):
                return weight
        if (
            _private.is_managed_by_fsdp(holder)
            or _private.is_exporting()
            or _private.function_transforms_active()
            # Subclasses such as DTensor and fake tensors are left alone.
            or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in sources)
        ):
            return compute()
        STEPS.watch()
        # The states are taken before the tensors are read: if another thread writes in between,
        # the entry is stale from the start and the next reader makes its own.
        steps, states = STEPS.count(), [_private.state(source) for source in sources]
        # Kept alive, so that no other storage gets the address.
        storages = [source.untyped_storage() for source in sources]
        # Tensors made in inference mode have no version counter.
        with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
            weight = compute()
        for i, source in enumerate(sources):
            # Other parametrizations may write to their buffers meanwhile, as spectral_norm does.
            if not isinstance(source, nn.Parameter):
                states[i] = _private.state(source)
        modules, version = (*_private.own_modules(holder).values(),), _private.version(weight)
        self.entry = (tuple(sources), states, modules, steps, weight, version, storages)
        alone = len(sources) == 1
        self.glance = (sources[0], *states[0][:4], weight, version, STEPS, steps) if alone else None
        return weight
