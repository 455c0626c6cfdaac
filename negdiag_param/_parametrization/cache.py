"""A weight that was computed before, with what tells whether it is still valid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_

import torch
from torch import Tensor, nn

from negdiag_param import _private
from negdiag_param._parametrization.steps import STEPS


@dataclass(frozen=True, slots=True)
class _Entry:
    sources: tuple[Tensor, ...]
    states: list[tuple[object, ...]]
    modules: tuple[object, ...]  # what computed the weight
    storages: list[torch.UntypedStorage]  # kept alive, so that no other gets their address
    steps: object
    weight: Tensor
    weight_version: int

    def holds_for(self, sources: Sequence[Tensor], holder: nn.Module) -> bool:
        """Whether the weight is still what ``sources`` give, with gradients if they are needed."""
        return (
            self.steps == STEPS.count()
            and all(map(is_, self.sources, sources))
            and self.states == [_private.state(source) for source in sources]
            and self.modules == (*_private.own_modules(holder).values(),)
            and self.weight_version == _private.version(self.weight)
            and (
                self.weight.requires_grad
                or not torch.is_grad_enabled()
                or not any(source.requires_grad for source in sources)
            )
        )


class WeightCache:
    """At most one weight, with the tensors it was computed from. A copy or a pickle is empty."""

    __slots__ = ("__weakref__", "entry", "glance")

    def __init__(self) -> None:
        self.entry: _Entry | None = None
        self.glance: tuple[object, ...] | None = None  # what _private.reading compares

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
        if entry is not None and entry.holds_for(sources, holder):
            return entry.weight
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
        storages = [source.untyped_storage() for source in sources]
        # Tensors made in inference mode have no version counter.
        with_grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
            weight = compute()
        for i, source in enumerate(sources):
            # Other parametrizations may write to their buffers meanwhile, as spectral_norm does.
            if not isinstance(source, nn.Parameter):
                states[i] = _private.state(source)
        modules, version = (*_private.own_modules(holder).values(),), _private.version(weight)
        self.entry = _Entry(tuple(sources), states, modules, storages, steps, weight, version)
        self.glance = None
        if len(sources) == 1 and isinstance(steps, int):  # and nothing is distributed
            number, pointer, dtype, _, requires_grad = states[0]
            state = sources[0], number, pointer, dtype, requires_grad
            self.glance = (*state, weight, version, STEPS, steps)
        return weight
