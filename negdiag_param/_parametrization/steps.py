"""What happens after a step of an optimizer, whichever it is.

Caches learn that there was one, since fused optimizers do not move version counters. And where the
map is a projection, the entries that the step has moved beyond the bound are set to it: projected
gradient descent.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from negdiag_param._links import Links
from negdiag_param._private import own_modules, own_parameters
from negdiag_param._ranks import shards


class StepCount:
    """Tells whether any optimizer has made a step."""

    def __init__(self) -> None:
        self._happened = False
        self._count = 0

    @lru_cache  # noqa: B019 (there is a single instance)
    def watch(self) -> None:
        """From now on, every step of every optimizer is noticed."""
        register_optimizer_step_post_hook(self._note)

    def count(self) -> int:
        """A number that is another one after a step."""
        if self._happened:
            self._happened = False
            self._count += 1
        return self._count

    def _note(self, *_: object) -> None:
        # Only sets, as a compiled step that read anything here would be compiled anew for it.
        self._happened = True


class Homes(Links[ParametrizationList]):
    """The lists that a projection stands first in, whose originals it is applied to after steps."""

    def __init__(self, lists: Iterable[ParametrizationList] = ()) -> None:
        super().__init__(lists)
        _PROJECTIONS.add(self)

    @override
    def add(self, module: ParametrizationList) -> None:
        super().add(module)
        _PROJECTIONS.add(self)


class _Projections:
    """Projects originals after the step of the optimizer that trains them."""

    def __init__(self) -> None:
        self._homes: WeakSet[Homes] = WeakSet()
        self._lock = Lock()
        # By the id of a parameter: the parameter, and the list that it is the original of, if any.
        self._known: dict[int, tuple[ref[Tensor], ref[ParametrizationList] | None]] = {}
        self._shapes: set[torch.Size] = set()  # of all originals
        self._looked_up = 0
        self._is_current = True

    def add(self, homes: Homes) -> None:
        """From now on, the originals of these lists are projected."""
        self._install()
        with self._lock:
            self._homes.add(homes)
            self._is_current = False

    @lru_cache  # noqa: B019 (there is a single instance)
    def _install(self) -> None:
        register_module_module_registration_hook(_note_home)
        register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if self._homes:
            self._untraced(optimizer)

    @cached_property
    def _untraced(self) -> Callable[[Optimizer], None]:
        # A compiled step breaks its graph here, as those of PyTorch's own optimizers do. To ask for
        # that imports the compiler, as the optimizer has done already, but not the module.
        return torch.compiler.disable(self._project)  # type: ignore[no-any-return]

    def _project(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Originals may be replaced where nobody tells, as loading with assign=True does, so they
        # are looked for again: at the first step of a parameter, and then not more often than
        # parameters are looked up. With an optimizer for each parameter, doing it at every step
        # would cost the square of their number.
        self._looked_up += len(parameters)
        is_due = not self._is_current or self._looked_up >= len(self._homes)
        if is_due or any(map(self._is_new, parameters)):
            self._search(parameters)
        with torch.no_grad():
            for parameter in parameters:
                home = self._known.get(id(parameter), (None, None))[1]
                found = None if home is None else home()
                if found is not None and own_parameters(found).get("original") is parameter:
                    _project(own_modules(found).get("0"), parameter)

    def _is_new(self, parameter: Tensor) -> bool:
        known = self._known.get(id(parameter))
        is_known = known is not None and known[0]() is parameter
        return not is_known and parameter.shape in self._shapes

    def _search(self, parameters: list[Tensor]) -> None:
        with self._lock:
            self._looked_up, self._is_current = 0, True
            homes = [each for homes in self._homes for each in homes]
            pairs = [(own_parameters(home).get("original"), home) for home in homes]
            found = [(original, home) for original, home in pairs if original is not None]
            self._shapes = {original.shape for original, _ in found}
            # Those known before stay: during a backward pass, fully_shard has gathered tensors in
            # the place of the originals of some layers while others make their step.
            alive = {key: known for key, known in self._known.items() if known[0]() is not None}
            seen = {id(p): (ref(p, self._outdate), None) for p in parameters}
            self._known = seen | alive
            for original, home in found:
                self._known[id(original)] = ref(original, self._outdate), ref(home)

    def _outdate(self, _: object) -> None:
        self._is_current = False


def _project(parametrization: Any, original: Any) -> None:
    # What FullyShardedDataParallel leaves of an original between forward passes is a flat piece.
    is_projection = vars(parametrization).get("homes") is not None
    if is_projection and parametrization.record.ndim == original.ndim:
        shards.project_(original, parametrization.options.diagonal, parametrization.strict)


def _note_home(module: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(module, ParametrizationList) and name == "0" and child is not None:
        homes = vars(child).get("homes")
        if isinstance(homes, Homes):
            homes.add(module)


STEPS = StepCount()
_PROJECTIONS = _Projections()
