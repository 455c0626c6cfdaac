"""From what a user gives as ``map`` and options to a parametrization."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch.distributions import Transform

from negdiag_param._parametrization.maps import READY
from negdiag_param._parametrization.options import Options, OptionsDict
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._parametrization.transform import TransformDiagonal

MapName = Literal["clamp", "exp", "softplus", "square", "sign_flip"]
Map: TypeAlias = MapName | type[NegativeDiagonal] | NegativeDiagonal | Transform

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parse(map: object, options: Mapping[str, Any]) -> NegativeDiagonal:
    """The parametrization that ``map`` and the options describe, for tensors of any shape."""
    if isinstance(map, str) and map not in READY:
        raise ValueError(f"map: expected one of {', '.join(READY)}, got {map!r}")
    chosen = READY[map] if isinstance(map, str) else map
    if isinstance(chosen, type) and issubclass(chosen, NegativeDiagonal):
        _check_known(chosen, options)
        return chosen(**options)
    if isinstance(chosen, Transform):
        _check_known(TransformDiagonal, options)
        return TransformDiagonal(chosen, **options)
    if isinstance(chosen, NegativeDiagonal):
        _check_known(type(chosen), options)
        shared = {"margin", *OptionsDict.__annotations__}
        clash = Options(**{k: v for k, v in options.items() if k in shared}).changed()
        clash |= {k: v for k, v in options.items() if k not in shared}
        if clash:
            shown = ", ".join(f"{name}={value!r}" for name, value in clash.items())
            raise ValueError(
                f"map: expected an instance to bring its own options, got {shown} "
                f"beside {type(chosen).__name__}({chosen.extra_repr()})"
            )
        return chosen
    raise TypeError(
        f"map: expected one of {', '.join(READY)}, a NegativeDiagonal class or instance, or a "
        f"torch.distributions Transform, got {map!r}"
    )


def _check_known(cls: type[NegativeDiagonal], options: Mapping[str, object]) -> None:
    """Refuses options that no constructor of ``cls`` names."""
    known: dict[str, None] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        known |= dict.fromkeys(name for name, p in parameters.items() if p.kind in _NAMED)
        if base is NegativeDiagonal:
            break
    for name in options.keys() - known.keys():
        raise TypeError(
            f"{name}: expected an option of {cls.__name__}, which are {', '.join(known)}, got "
            f"{name}={options[name]!r}"
        )
