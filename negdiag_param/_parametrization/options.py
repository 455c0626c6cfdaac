"""The options of a negative diagonal, declared and validated once."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypeVar, cast

from typing_extensions import TypedDict

from negdiag_param._maths.diagonal import TAPS, Diagonal, Taps
from negdiag_param._maths.dominance import DOMINANCE, Kind
from negdiag_param._maths.feasible import INFEASIBLE, Infeasible

F = TypeVar("F", bound=Callable[..., Any])


class OptionsDict(TypedDict, total=False):
    """The options beside the margin, as keyword arguments."""

    dims: tuple[int, ...] | None
    taps: Taps
    blocks: int | None
    dominance: Kind | None
    infeasible: Infeasible
    cache_in_eval: bool


class MapOptionsDict(OptionsDict, total=False):
    """All options as keyword arguments, and the constant of the map that has one."""

    margin: float
    beta: float


@dataclass(frozen=True)
class Options:
    """The options of :class:`NegativeDiagonal`, which says what they mean, checked."""

    margin: float = 0.0
    dims: tuple[int, ...] | None = None
    taps: Taps = "all"
    blocks: int | None = None
    dominance: Kind | None = None
    infeasible: Infeasible = "warn"
    cache_in_eval: bool = False
    diagonal: Diagonal = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wanted = "a finite number that is not negative"
        margin = checked_number("margin", self.margin, 0.0, sys.float_info.max, wanted)
        dims, blocks = self.dims, self.blocks
        if dims is not None:
            if not isinstance(dims, (tuple, list)) or not all(type(dim) is int for dim in dims):
                raise TypeError(f"dims: expected a tuple of two integers or (), got {dims!r}")
            if len(dims) not in (0, 2):
                raise ValueError(f"dims: expected two dimensions or none, got {dims!r}")
            dims = tuple(dims)
        check_choice("taps", self.taps, TAPS)
        if blocks is not None:
            if type(blocks) is not int:
                raise TypeError(f"blocks: expected an integer, got {type(blocks).__name__}")
            if blocks < 1:
                raise ValueError(f"blocks: expected at least 1, got {blocks}")
        if self.dominance is not None:
            check_choice("dominance", self.dominance, DOMINANCE)
        check_choice("infeasible", self.infeasible, INFEASIBLE)
        if not isinstance(self.cache_in_eval, bool):
            raise TypeError(f"cache_in_eval: expected True or False, got {self.cache_in_eval!r}")
        diagonal = Diagonal(dims, blocks or 1, self.taps)
        vars(self).update(margin=margin, dims=dims, diagonal=diagonal)

    @property
    def at_registration(self) -> Infeasible:
        """The policy for a weight that is registered or initialised."""
        return "initial" if self.infeasible == "warn" else self.infeasible

    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults."""
        given = ((f, getattr(self, f.name)) for f in fields(self) if f.init)
        return {f.name: value for f, value in given if value != f.default}


def options_shown(function: F) -> F:
    """Lets ``help`` and editors show the options that ``**options`` stands for by name."""
    signature = inspect.signature(function)
    own = dict(signature.parameters)
    rest = own.pop("options")
    options = inspect.signature(Options).parameters.items()
    own |= {name: p.replace(kind=p.KEYWORD_ONLY) for name, p in options if name not in own}
    if function.__name__ != "__init__":
        own["options"] = rest  # what only some maps take
    function.__signature__ = signature.replace(parameters=[*own.values()])  # type: ignore[attr-defined]
    return function


def shown(options: Mapping[str, object]) -> str:
    """The options as they are passed."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses what is none of ``choices``."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {choices}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def checked_number(name: str, value: object, low: float, high: float, wanted: str) -> float:
    """``value`` as a float, if it is a number from ``low`` to ``high``, which is ``wanted``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= cast(float, value) <= high:  # exact, also for whole numbers beyond all floats
        raise ValueError(f"{name}: expected {wanted}, got {value}")
    return float(value)
