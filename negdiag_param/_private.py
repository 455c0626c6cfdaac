"""What private names of PyTorch alone tell, with what happens once one is gone, and the stack."""

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import suppress
from functools import lru_cache
from itertools import count
from types import FrameType
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_compiling
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize

# Some tools replace this while they trace or patch, and then it has to see every module call.
_MODULE_CALL = nn.Module.__call__
_UNKNOWN_VERSIONS = count()

# Without these two nothing is cached, so nobody calls them.
_dispatch_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", None)
_tracing_state: Any = getattr(torch._C, "_get_tracing_state", None)

# What a parallel style asks a module for before it converts anything. If it is gone, the error of
# a style that comes too late is PyTorch's own.
DISTRIBUTED_MARK = "_distribute_module_applied"

# The process groups that there are, live. If unknown, collectives go unnoticed.
PROCESS_GROUPS: Collection[Any] = getattr(
    sys.modules.get("torch.distributed.distributed_c10d"), "_pg_map", ()
)

_PASSED_BY = ("torch", "negdiag_param")
# The modules in which functional_call, parallel styles and set_model_state_dict do their work.
_SUBSTITUTES = ("torch.nn.utils.stateless", "torch.nn.utils._named_member_accessor")
_DISTRIBUTES = "torch.distributed.tensor._api"
# Where quantization gives the parametrizations to a new module, and then its values.
_TRANSFERS = "transfer_parametrizations_and_params"
_LOADS = "torch.distributed.checkpoint.state_dict"


def _read(owner: Any, name: str, otherwise: Any, consequence: str) -> Any:
    """The attribute, or ``otherwise`` with a warning."""
    try:
        return getattr(owner, name)
    except AttributeError:
        _warn_once(name, consequence)
        return otherwise


@lru_cache
def _warn_once(name: str, consequence: str) -> None:
    warnings.warn(
        f"negdiag_param does not know this PyTorch ({torch.__version__}): {name} is gone, "
        f"so {consequence}.",
        RuntimeWarning,
        stacklevel=3,
    )


# These three have been there since the first releases; without them nothing here works.


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The submodules by name, live. Wrappers pass attributes through; this is the module's own."""
    return module._modules


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters by name, live."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers by name, live."""
    return module._buffers


def checking_casts(cls: type[nn.Module]) -> dict[str, Any]:
    """The method that casts a module, which asks first: RNNs change before their parts refuse."""

    def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        dtype = torch.float32
        with suppress(Exception):  # of a function that takes other tensors only
            dtype = fn(torch.zeros((), device="cpu")).dtype
        for module in self.modules():
            if isinstance(module, ChecksCasts):
                module.check_cast(dtype)
        return cls._apply(self, fn, recurse)

    return {"_apply": _apply}


class ChecksCasts(nn.Module):
    """A module that is asked before a cast of the module that contains it changes anything."""

    _apply = checking_casts(nn.Module)["_apply"]

    def check_cast(self, dtype: torch.dtype) -> None:
        """Raises an error if the tensors beside this module cannot have the dtype."""


def non_persistent_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers that stay out of checkpoints, live."""
    consequence = "registered buffers become persistent"
    return _read(module, "_non_persistent_buffers_set", set(), consequence)  # type: ignore[no-any-return]


def loading_method(cls: type[nn.Module]) -> Callable[..., None] | None:
    """What reads the entries of a module itself from a state dict; None if that is unknown."""
    consequence = "checkpoints from before registration do not load"
    return _read(cls, "_load_from_state_dict", None, consequence)  # type: ignore[no-any-return]


def keep_metadata(state: dict[str, Any], target: dict[str, Any]) -> None:
    """Passes on the versions that ``state_dict`` notes of modules other than parametrizations."""
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        kept = (item for item in metadata.items() if "parametrizations" not in item[0].split("."))
        target._metadata = type(metadata)(kept)  # type: ignore[attr-defined]


def is_placeholder(value: object) -> bool:
    """Whether ``value`` is what ``set_model_state_dict`` puts where a state says nothing."""
    return type(value).__name__ == "_EXTRA_STATE"


def has_values(tensor: Tensor) -> bool:
    """Whether there are entries to be read, which a meta tensor and a fake one do not have."""
    return not tensor.is_meta and type(tensor).__name__ != "FakeTensor"


def version(tensor: Tensor) -> int:
    """How often ``tensor`` was written in place. If unknown: another number each time."""
    found = _read(tensor, "_version", None, "weights are computed anew instead of cached")
    return next(_UNKNOWN_VERSIONS) if found is None else found


def state(tensor: Tensor) -> tuple[object, ...]:
    """What differs once ``tensor`` has changed in place, or been given other data."""
    return version(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.device


def reading(tensor_name: str, carefully: Callable[[Any, bool], Tensor]) -> Callable[[Any], Tensor]:
    """A getter of the weight that was last read, where one look shows that it is still valid.

    That is the usual case: one plain parameter, one parametrization, and nothing that watches.
    Otherwise it calls ``carefully`` with the module and whether a compiler traces.
    """

    def get(module: Any) -> Tensor:
        if is_compiling():
            return carefully(module, True)
        weight: Any = None
        valid = False
        try:
            holder = module._modules["parametrizations"]
            link = holder.recent.get(tensor_name)
            cache = None if link is None else link()
            glance = None if cache is None else cache.glance  # read once: threads may drop it
            if glance is not None:
                original, version, pointer, dtype, grad, weight, weight_version, steps, total = (
                    glance
                )
                found = holder._modules[tensor_name]
                valid = (
                    found._parameters["original"] is original
                    and original._version == version
                    and original.data_ptr() == pointer
                    and original.dtype is dtype
                    and original.requires_grad is grad
                    and weight._version == weight_version
                    and steps.total == total
                    and not PROCESS_GROUPS
                    and len(found._modules) == 1
                    and (not is_grad_enabled() or weight.requires_grad)
                    and not _dispatch_modes()
                    and _tracing_state() is None
                )
        except (AttributeError, KeyError):
            pass  # a name or an entry is gone, and the careful way says which
        return weight if valid else carefully(module, False)

    return get


def collectives() -> int:
    """How many collectives this process has begun. If unknown: another number each time.

    They write into a tensor without moving its version counter.
    """
    try:
        return sum(group._get_sequence_number_for_group() + 1 for group in PROCESS_GROUPS)
    except (AttributeError, RuntimeError):  # of a backend that does not count
        return -1 - next(_UNKNOWN_VERSIONS)


def function_transforms_active(if_unknown: bool = True) -> bool:
    """Whether a ``torch.func`` transform runs. True is always safe, but slower."""
    name, consequence = "_are_functorch_transforms_active", "eager mode is slower"
    return _read(torch._C, name, lambda: if_unknown, consequence)()  # type: ignore[no-any-return]


def dispatch_mode_active() -> bool:
    """Whether a mode sees every operation, as tracers and fake tensors have it. If unknown: yes."""
    consequence = "weights are computed anew, not cached"
    return _read(torch._C, "_len_torch_dispatch_stack", lambda: 1, consequence)() > 0  # type: ignore[no-any-return]


def is_exporting() -> bool:
    """Whether an exporter traces.

    The compiler of PyTorch before 2.12 takes the public function for true, and would trace the
    form that is for exporters, whose gradients overflow.
    """
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


def is_just_forward(module: nn.Module) -> bool:
    """Whether calling ``module`` is calling the ``forward`` of its class. If unknown: no, slower.

    Hooks, a ``forward`` of the instance's own, as offloading puts there, and a patched call of
    all modules make the difference.
    """
    try:
        return not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or nn_module._global_forward_hooks
            or nn_module._global_forward_pre_hooks
            or nn_module._global_backward_hooks
            or nn_module._global_backward_pre_hooks
            or "forward" in module.__dict__
            or module._compiled_call_impl
            or nn.Module.__call__ is not _MODULE_CALL
        )
    except AttributeError as error:
        _warn_once(str(error.name), "small layers are slower")
        return False


def cached_block() -> MutableMapping[Any, Any] | None:
    """The store of the ``parametrize.cached()`` block that runs; None outside, or if unknown."""
    consequence = "parametrize.cached() recomputes instead of caching"
    enabled = _read(parametrize, "_cache_enabled", False, consequence)
    return _read(parametrize, "_cache", None, consequence) if enabled else None


def is_managed_by_fsdp(module: nn.Module) -> bool:
    """Whether ``fully_shard`` swaps the parameters of ``module``. If unknown: no.

    It gathers them into the same memory without moving the version counter, so that a change of
    the shards cannot be noticed. Dynamo reads this mark too.
    """
    return vars(module).get("_is_fsdp_managed_module", False) is True


def warn_user(message: str) -> None:
    """Warns at the user's line, however many of our frames and PyTorch's lie in between."""
    level = 1
    for name, frame in _callers():
        if frame.f_code.co_name == _TRANSFERS:
            return
        level += 1
        if name.partition(".")[0] not in _PASSED_BY:
            break
    warnings.warn(message, UserWarning, stacklevel=level)


def is_substituting() -> bool:
    """Whether ``torch.func.functional_call`` is putting a tensor in, to take it out again."""
    for name, _ in _callers():
        if name in _SUBSTITUTES or name.partition(".")[0] not in _PASSED_BY:
            return name in _SUBSTITUTES
    return False


def is_distributing() -> bool:
    """Whether ``distribute_module`` asks, with which every parallel style begins."""
    return asking() == _DISTRIBUTES


def canonical_state() -> dict[str, Any]:
    """What ``set_model_state_dict`` loads, if it does; its names leave out those of wrappers."""
    return next((state for state in _loading("state_dict") if isinstance(state, dict)), {})


def is_broadcasting() -> bool:
    """Whether all ranks are in ``set_model_state_dict`` with the checkpoint of the first one."""
    return any(getattr(each, "broadcast_from_rank0", False) for each in _loading("options"))


def _loading(variable: str) -> Iterator[Any]:
    """The values of a variable in the functions of ``set_model_state_dict`` that have called."""
    return (frame.f_locals.get(variable) for name, frame in _callers() if name == _LOADS)


def asking() -> str:
    """The module in which the innermost caller outside of this package is."""
    outside = (name for name, _ in _callers() if name.partition(".")[0] != "negdiag_param")
    return next(outside, "")


def _callers() -> Iterator[tuple[str, FrameType]]:
    """The functions that called the caller, from the innermost on, with their modules."""
    frame = inspect.currentframe()
    while frame:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__:
            yield name, frame
        frame = frame.f_back
