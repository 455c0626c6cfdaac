"""Checks of arguments that need no tensor."""

import math
from numbers import Real


def checked_margin(margin: object) -> float:
    """A finite number that is not negative."""
    if isinstance(margin, bool) or not isinstance(margin, Real):
        raise TypeError(f"margin: expected a number, got {type(margin).__name__}")
    value = float(margin)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"margin: expected a finite number that is not negative, got {margin}")
    return value


def checked_blocks(blocks: object) -> int:
    """A positive integer."""
    if isinstance(blocks, bool) or not isinstance(blocks, int):
        raise TypeError(f"blocks: expected an integer, got {type(blocks).__name__}")
    if blocks < 1:
        raise ValueError(f"blocks: expected at least 1, got {blocks}")
    return blocks


def checked_dims(dims: object) -> tuple[int, ...] | None:
    """Two dimensions, none, or None."""
    if dims is None:
        return None
    if not isinstance(dims, (tuple, list)) or not all(type(dim) is int for dim in dims):
        raise TypeError(f"dims: expected a tuple of two integers or (), got {dims!r}")
    if len(dims) not in (0, 2):
        raise ValueError(f"dims: expected two dimensions or none, got {dims!r}")
    return tuple(dims)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses what is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
