"""Where the user's own code stands on the stack."""

import inspect
import warnings

_PASSED_BY = ("torch", "negdiag_param")


def warn_user(message: str) -> None:
    """Warns at the user's line, however many of our frames and PyTorch's lie in between."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_BY:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
