"""Who has called, as the stack tells."""

import inspect
import warnings
from collections.abc import Iterator
from types import FrameType

_PASSED_BY = ("torch", "negdiag_param")
# What functional_call puts tensors in with.
_SUBSTITUTES = ("torch.nn.utils.stateless", "torch.nn.utils._named_member_accessor")
_DISTRIBUTES = "torch.distributed.tensor._api"
_LOADS = "torch.distributed.checkpoint.state_dict"


def warn_user(message: str) -> None:
    """Warns at the user's line, however many of our frames and PyTorch's lie in between."""
    level = 1
    for name in _callers():
        level += 1
        if name.partition(".")[0] not in _PASSED_BY:
            break
    warnings.warn(message, UserWarning, stacklevel=level)


def is_substituting() -> bool:
    """Whether ``torch.func.functional_call`` is putting a tensor in, to take it out again."""
    for name in _callers():
        if name in _SUBSTITUTES:
            return True
        if name.partition(".")[0] not in _PASSED_BY:
            return False
    return False


def is_distributing() -> bool:
    """Whether ``distribute_module`` asks, which every parallel style begins with."""
    outside = (name for name in _callers() if name.partition(".")[0] != "negdiag_param")
    return next(outside, "") == _DISTRIBUTES


def is_broadcasting() -> bool:
    """Whether all ranks are in ``set_model_state_dict`` with the checkpoint of the first one."""
    options = (f.f_locals.get("options") for f in _frames() if _module(f) == _LOADS)
    return any(getattr(found, "broadcast_from_rank0", False) for found in options)


def _callers() -> Iterator[str]:
    """The modules of the functions that called the caller, from the innermost on."""
    return map(_module, _frames())


def _frames() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame:
        if _module(frame) != __name__:
            yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
