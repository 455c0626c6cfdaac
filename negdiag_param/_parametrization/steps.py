"""What happens after a step of any optimizer.

Caches learn that there was one, since fused optimizers do not move version counters. And where the
map is a projection, the entries that the step has moved beyond the bound are set to it: projected
gradient descent.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import Self

from negdiag_param._maths.kernel import project_
from negdiag_param._private import PROCESS_GROUPS, collectives, own_modules, own_parameters
from negdiag_param._ranks import shards

M = TypeVar("M", bound=nn.Module)


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


class Links(Generic[M]):
    """Weak references to modules that contain the one which holds them.

    A copy of the whole has links to the copies, since those are known before their contents are
    copied; a copy of the part alone has none.
    """

    def __init__(self, modules: Iterable[M] = ()) -> None:
        self._refs = [ref(module) for module in modules]

    def __iter__(self) -> Iterator[M]:
        return (module for found in self._refs if (module := found()) is not None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(memo[id(module)] for module in self if id(module) in memo)

    def __reduce__(self) -> tuple[type[Self], tuple[list[M]]]:
        return type(self), (list(self),)


class Homes(Links[ParametrizationList]):
    """The lists that a projection stands first in: after a step their originals are projected."""

    def __init__(self, lists: Iterable[ParametrizationList] = ()) -> None:
        super().__init__(lists)
        _PROJECTIONS.add(self)


class _Projections:
    """Projects originals after the step of the optimizer that trains them.

    It has no weak references to parameters: ``torch.utils.swap_tensors`` refuses tensors with them.
    """

    def __init__(self) -> None:
        self._homes: WeakSet[Homes] = WeakSet()
        self._lock = Lock()
        self._lists: dict[int, ref[ParametrizationList]] = {}  # by the id of the original
        self._shapes: set[torch.Size] | None = None  # of originals; None if some are not known yet
        self._searched: WeakKeyDictionary[Optimizer, list[int]] = WeakKeyDictionary()

    def add(self, homes: Homes) -> None:
        """From now on, the originals of these lists are projected."""
        self._install()
        with self._lock:
            self._homes.add(homes)
            self._shapes = None
            self._searched.clear()

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
        ids = [*map(id, parameters)]
        if self._searched.get(optimizer) != ids:
            with self._lock:
                self._searched[optimizer] = ids
                self._search(parameters)
        for original in parameters:
            home = self._home(original)
            if home is None:
                continue
            first = cast(Any, own_modules(home).get("0"))
            # Not what FullyShardedDataParallel leaves between forward passes, a flat piece.
            if vars(first).get("homes") is not None and first.record.ndim == original.ndim:
                # Casts leave such tensors, which optimizers write to outside of the mode as well.
                with torch.inference_mode(original.is_inference()):
                    for part, place in shards.parts(original, first.options.diagonal):
                        project_(part, place, first.strict)

    def _home(self, tensor: Tensor) -> ParametrizationList | None:
        """The list whose original ``tensor`` is, if any."""
        found = self._lists.get(id(tensor))
        home = None if found is None else found()
        known = None if home is None else own_parameters(home).get("original")
        return home if known is tensor else None

    def _search(self, parameters: list[Tensor]) -> None:
        """Makes known which of the parameters are originals.

        Where each parameter has an optimizer, not each of them should look at all originals. But
        a search does not see all of them: where optimizers step during the backward pass,
        ``fully_shard`` has put gathered tensors in the place of some originals meanwhile.
        """
        others = (p.shape for p in parameters if self._home(p) is None)
        if self._shapes is not None and self._shapes.isdisjoint(others):
            return
        lists = {key: found for key, found in self._lists.items() if found() is not None}
        shapes = set()
        for home in itertools.chain.from_iterable(self._homes):
            original = own_parameters(home).get("original")
            if original is not None:
                lists[id(original)] = ref(home)
                shapes.add(original.shape)
        self._lists, self._shapes = lists, shapes


def _note_home(module: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(module, ParametrizationList) and name == "0" and child is not None:
        homes = vars(child).get("homes")
        if isinstance(homes, Homes):
            vars(child)["homes"] = Homes([*homes, module])


STEPS = StepCount()
_PROJECTIONS = _Projections()
