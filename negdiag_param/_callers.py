"""Who has called, as the stack tells."""

import inspect
import warnings
from collections.abc import Iterator
from itertools import takewhile
from types import FrameType
from typing import Any

_PASSED_BY = ("torch", "negdiag_param")
# The modules in which functional_call, parallel styles and set_model_state_dict do their work.
_SUBSTITUTES = ("torch.nn.utils.stateless", "torch.nn.utils._named_member_accessor")
_DISTRIBUTES = "torch.distributed.tensor._api"
_LOADS = "torch.distributed.checkpoint.state_dict"


def warn_user(message: str) -> None:
    """Warns at the user's line, however many of our frames and PyTorch's lie in between."""
    names = (name.partition(".")[0] for name, _ in _callers())
    passed = sum(1 for _ in takewhile(_PASSED_BY.__contains__, names))
    warnings.warn(message, UserWarning, stacklevel=passed + 2)


def is_substituting() -> bool:
    """Whether ``torch.func.functional_call`` is putting a tensor in, to take it out again."""
    for name, _ in _callers():
        if name in _SUBSTITUTES or name.partition(".")[0] not in _PASSED_BY:
            return name in _SUBSTITUTES
    return False


def is_distributing() -> bool:
    """Whether ``distribute_module`` asks, with which every parallel style begins."""
    outside = (name for name, _ in _callers() if name.partition(".")[0] != "negdiag_param")
    return next(outside, "") == _DISTRIBUTES


def canonical_state() -> dict[str, Any]:
    """What ``set_model_state_dict`` loads, if it does; its names leave out those of wrappers."""
    return next((state for state in _loading("state_dict") if isinstance(state, dict)), {})


def is_broadcasting() -> bool:
    """Whether all ranks are in ``set_model_state_dict`` with the checkpoint of the first one."""
    return any(getattr(each, "broadcast_from_rank0", False) for each in _loading("options"))


def _loading(variable: str) -> Iterator[Any]:
    """The values of a variable in the functions of ``set_model_state_dict`` that have called."""
    return (frame.f_locals.get(variable) for name, frame in _callers() if name == _LOADS)


def _callers() -> Iterator[tuple[str, FrameType]]:
    """The functions that called the caller, from the innermost on, with their modules."""
    frame = inspect.currentframe()
    while frame:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__:
            yield name, frame
        frame = frame.f_back
