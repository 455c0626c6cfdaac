"""Turns what a user gives as ``map``, and the options, into a parametrization."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor
from torch.distributions import ComposeTransform, Transform
from typing_extensions import Unpack, override

from negdiag_param._parametrization.maps import READY
from negdiag_param._parametrization.options import Options, OptionsDict, options_shown, shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal

MapName = Literal["clamp", "exp", "softplus", "square", "sign_flip"]
Map: TypeAlias = MapName | type[NegativeDiagonal] | NegativeDiagonal | Transform

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class TransformDiagonal(NegativeDiagonal):
    """Keeps a diagonal negative through a transform from the reals to the negative numbers."""

    @options_shown
    def __init__(
        self, transform: Transform, margin: float = 0.0, **options: Unpack[OptionsDict]
    ) -> None:
        super().__init__(margin, **options)
        self.transform = _copyable(transform)
        shown = " ".join(repr(self.transform).split())
        self.strict.scalar_map.name = re.sub(r" at 0x\w+", "", shown)

    @override
    def map(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.transform(x))

    @override
    def inverse(self, d: Tensor) -> Tensor:
        return cast(Tensor, self.transform.inv(d))

    @override
    def extra_repr(self) -> str:
        return ", ".join(filter(None, [self.strict.scalar_map.name, super().extra_repr()]))


def _copyable(transform: Transform) -> Transform:
    """The transform without a cache of the last tensors, which could not be copied."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_copyable(part) for part in transform.parts])
    try:
        found = cast(Transform, transform.with_cache(0))
        copy.deepcopy(found).bijective  # noqa: B018 (the copy of an inverse has lost its transform)
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"map: expected a transform that can be copied, without .inv and with cache_size=0, "
            f"got {transform}"
        ) from error
    return found


def parse(map: object, options: Mapping[str, Any]) -> NegativeDiagonal:
    """The parametrization that ``map`` and the options describe, for tensors of any shape."""
    if isinstance(map, str) and map not in READY:
        raise ValueError(f"map: expected one of {', '.join(READY)}, got {map!r}")
    chosen = READY[map] if isinstance(map, str) else map
    make: Callable[..., NegativeDiagonal]
    if isinstance(chosen, type) and issubclass(chosen, NegativeDiagonal):
        make = cls = chosen
    elif isinstance(chosen, Transform):
        make, cls = partial(TransformDiagonal, chosen), TransformDiagonal
    elif isinstance(chosen, NegativeDiagonal):
        make = cls = type(chosen)
    else:
        raise TypeError(
            f"map: expected one of {', '.join(READY)}, a NegativeDiagonal class or instance, or a "
            f"torch.distributions Transform, got {map!r}"
        )
    constructors = [base for base in cls.__mro__ if "__init__" in vars(base)]
    constructors = constructors[: constructors.index(NegativeDiagonal) + 1]
    parameters = chain(*(inspect.signature(base).parameters.values() for base in constructors))
    known = dict.fromkeys(p.name for p in parameters if p.kind in _NAMED)
    for name in options.keys() - known.keys():
        raise TypeError(
            f"{name}: expected an option of {cls.__name__}, which are {', '.join(known)}, got "
            f"{name}={options[name]!r}"
        )
    if not isinstance(chosen, NegativeDiagonal):
        return make(**options)
    constants = {k: v for k, v in options.items() if not hasattr(Options, k)}
    others = {k: v for k, v in options.items() if k not in constants}
    clash = Options(**others).changed() | constants
    if clash:
        raise ValueError(
            f"map: expected an instance to bring its own options, got {shown(clash)} "
            f"beside {type(chosen).__name__}({chosen.extra_repr()})"
        )
    return chosen
