"""What happens after a step of any optimizer.

Caches learn that there was one, since fused optimizers do not move version counters. And where the
map is a projection, the entries that the step has moved beyond the bound are set to it: projected
gradient descent.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from negdiag_param._links import Links
from negdiag_param._private import PROCESS_GROUPS, collectives, own_modules, own_parameters
from negdiag_param._ranks import shards


class StepCount:
    """Tells whether any optimizer has made a step, or any collective has begun."""

    def __init__(self) -> None:
        self.total = 0  # -1 from a step until the next count
        self._totals = itertools.count(1)  # no two threads get the same

    @lru_cache  # noqa: B019 (there is a single instance)
    def watch(self) -> None:
        """From now on, every step of every optimizer is noticed."""
        register_optimizer_step_post_hook(self._note)

    def count(self) -> int | tuple[int, int]:
        """What is different after a step, and after a collective."""
        total = self.total
        if total < 0:
            total = self.total = next(self._totals)
        return (total, collectives()) if PROCESS_GROUPS else total

    def _note(self, *_: object) -> None:
        # This only writes: a compiled step would be compiled anew whenever what it reads changes.
        self.total = -1


class Homes(Links[ParametrizationList]):
    """The lists that a projection stands first in, whose originals it is applied to after steps."""

    def __init__(self, lists: Iterable[ParametrizationList] = ()) -> None:
        super().__init__(lists)
        _PROJECTIONS.add(self)

    @override
    def add(self, module: ParametrizationList) -> None:
        super().add(module)
        _PROJECTIONS.add(self)


class _Plan(NamedTuple):
    """Which parameters of an optimizer are originals, by their places, and of which lists."""

    parameters: list[int]
    originals: dict[int, "ref[ParametrizationList]"]


class _Projections:
    """Projects originals after the step of the optimizer that trains them.

    It has no weak references to parameters: ``torch.utils.swap_tensors`` refuses tensors with them.
    """

    def __init__(self) -> None:
        self._homes: WeakSet[Homes] = WeakSet()
        self._lock = Lock()
        self._plans: WeakKeyDictionary[Optimizer, _Plan] = WeakKeyDictionary()
        self._lists: dict[int, ref[ParametrizationList]] = {}  # by the id of the original
        self._shapes: set[torch.Size] = set()  # of originals

    def add(self, homes: Homes) -> None:
        """From now on, the originals of these lists are projected."""
        self._install()
        with self._lock:
            self._homes.add(homes)
            self._plans.clear()
            self._lists.clear()

    @lru_cache  # noqa: B019 (there is a single instance)
    def _install(self) -> None:
        register_module_module_registration_hook(_note_home)
        register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if self._homes:
            self._untraced(optimizer)

    @cached_property
    def _untraced(self) -> Callable[[Optimizer], None]:
        # A compiled step breaks its graph here, as those of PyTorch's own optimizers do. Made when
        # it is first needed, since this imports the compiler, which an optimizer has done already.
        return torch.compiler.disable(self._project)  # type: ignore[no-any-return]

    def _project(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        plan = self._plans.get(optimizer)
        if plan is None or plan.parameters != [*map(id, parameters)]:
            with self._lock:
                plan = _Plan([*map(id, parameters)], self._originals(parameters))
                self._plans[optimizer] = plan
        for place, found in plan.originals.items():
            home = found()
            if home is None or _original(found) is not parameters[place]:
                continue
            original, first = parameters[place], cast(Any, own_modules(home).get("0"))
            # Not what FullyShardedDataParallel leaves between forward passes, a flat piece.
            if vars(first).get("homes") is not None and first.record.ndim == original.ndim:
                # Casts leave such tensors, which optimizers write to outside of the mode as well.
                with torch.inference_mode(original.is_inference()):
                    shards.project_(original, first.options.diagonal, first.strict)

    def _originals(self, parameters: list[Tensor]) -> dict[int, "ref[ParametrizationList]"]:
        found = self._known(parameters)
        others = [p for place, p in enumerate(parameters) if place not in found]
        # Where each parameter has an optimizer, not each of them should search all originals. But
        # a search does not see all of them: where optimizers step during the backward pass,
        # fully_shard has put gathered tensors in the place of some originals meanwhile.
        if not self._lists or any(p.shape in self._shapes for p in others):
            self._search()
            found = self._known(parameters)
        return found

    def _known(self, parameters: list[Tensor]) -> dict[int, "ref[ParametrizationList]"]:
        lists = enumerate(self._lists.get(id(p)) for p in parameters)
        return {i: found for i, found in lists if found and _original(found) is parameters[i]}

    def _search(self) -> None:
        lists = [ref(each) for homes in self._homes for each in homes]
        found = [(original, each) for each in lists if (original := _original(each)) is not None]
        self._lists = {id(original): each for original, each in found}
        self._shapes = {original.shape for original, _ in found}


def _original(found: "ref[ParametrizationList]") -> Tensor | None:
    home = found()
    return None if home is None else own_parameters(home).get("original")


def _note_home(module: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(module, ParametrizationList) and name == "0" and child is not None:
        homes = vars(child).get("homes")
        if isinstance(homes, Homes):
            homes.add(module)


STEPS = StepCount()
_PROJECTIONS = _Projections()
