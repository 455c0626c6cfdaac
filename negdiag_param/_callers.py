"""Who has called, as the stack tells."""

import inspect
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

_PASSED_BY = ("torch", "negdiag_param")
# The modules in which functional_call, parallel styles and set_model_state_dict do their work.
_SUBSTITUTES = ("torch.nn.utils.stateless", "torch.nn.utils._named_member_accessor")
_DISTRIBUTES = "torch.distributed.tensor._api"
# Where quantization gives the parametrizations to a new module, and then its values.
_TRANSFERS = "transfer_parametrizations_and_params"
_LOADS = "torch.distributed.checkpoint.state_dict"


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
    return _asking() == _DISTRIBUTES


def is_copying() -> bool:
    """Whether ``copy`` asks, and not a pickler."""
    return _asking() == "copy"


def canonical_state() -> dict[str, Any]:
    """What ``set_model_state_dict`` loads, if it does; its names leave out those of wrappers."""
    return next((state for state in _loading("state_dict") if isinstance(state, dict)), {})


def is_broadcasting() -> bool:
    """Whether all ranks are in ``set_model_state_dict`` with the checkpoint of the first one."""
    return any(getattr(each, "broadcast_from_rank0", False) for each in _loading("options"))


def _loading(variable: str) -> Iterator[Any]:
    """The values of a variable in the functions of ``set_model_state_dict`` that have called."""
    return (frame.f_locals.get(variable) for name, frame in _callers() if name == _LOADS)


def _asking() -> str:
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
