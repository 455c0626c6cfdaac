"""Maps of users' own: a ``map`` and an ``inverse``, tried before they are trusted."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.strict import ScalarMap

_NAMES = ("map", "inverse")
_PROBES = (-8.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 8.0)
_SAMPLES = (-3.0, -1.0, 0.25, 1.0, 3.0)
_FAR = 1e4  # where a bounded map is at its ends


class MapAndInverse(Protocol):
    """What a user writes: two functions, entry by entry, that do not know the margin."""

    def map(self, x: Tensor) -> Tensor:
        """From any real to a negative number."""
        ...

    def inverse(self, d: Tensor) -> Tensor:
        """From a negative number to a real."""
        ...


class OwnMap(ScalarMap):
    """``map(x) - margin``.

    Args:
        functions: the map and the inverse, which are looked up at every call.
        name: gives what they are called in messages and checkpoints.
    """

    has_slope = False

    def __init__(self, functions: MapAndInverse, name: Callable[[], str]) -> None:
        self._functions = functions
        self._name = name

    @property
    def name(self) -> str:  # type: ignore[override]
        """What the map is called."""
        return self._name()

    @override
    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return self._functions.map(x) - limits.margin

    @override
    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        """A finite ``x`` that maps to the feasible ``value``."""
        self._try_map(value)
        value = (value + limits.margin).clamp(max=-limits.nearest)
        try:
            x = self._like(value, self._functions.inverse(value.clone()), "inverse")
        except NotImplementedError as error:  # which PyTorch would take for "there is none"
            raise ValueError(f"expected an inverse of {self.name}, got {error!r}") from error
        back = self._like(x, self._functions.map(x), "map")
        # A hundredth; near zero what rounding costs a map that is at most one steep, and a little.
        tolerance = 1e-2 * value.abs() + 16 * torch.finfo(x.dtype).eps * (1 + x.abs()) + 1e-5
        if not (x.isfinite() & ((back - value).abs() <= tolerance)).all():
            self._check_within_reach(value, limits)
            raise ValueError(
                f"expected an inverse that reaches the diagonal, but the inverse of {self.name} "
                f"does not lead back to values between {value.min().item():.6g} and "
                f"{value.max().item():.6g}"
            )
        return x

    @override
    def sampled(self) -> tuple[float, ...]:
        """Values of the map; empty if it cannot be tried on the CPU."""
        with torch.no_grad(), suppress(Exception):
            samples = [torch.tensor(x, dtype=torch.float64, device="cpu") for x in _SAMPLES]
            return tuple(_summary(self._functions.map(sample)) for sample in samples)
        return ()

    def _try_map(self, like: Tensor) -> None:
        for x in _PROBES:
            probe = torch.full_like(like, x)
            image = self._like(like, self._functions.map(probe), "map")
            if not (probe == x).all():
                raise ValueError(
                    f"expected a map that leaves its argument as it is, got {self.name}, which "
                    f"writes to it"
                )
            if not (image.isfinite() & (image <= 0)).all():
                raise ValueError(
                    f"expected a map from the reals to the negative numbers, got {self.name} with "
                    f"values up to {image.max().item():.6g} at {x:g}"
                )

    def _check_within_reach(self, value: Tensor, limits: Limits) -> None:
        """Says of a bounded map, such as a scaled sigmoid, which values it can give."""
        ends = [self._functions.map(torch.full_like(value, x)) for x in (-_FAR, _FAR)]
        lowest, highest = torch.minimum(*ends), torch.maximum(*ends)
        beyond = (value < lowest) | (value > highest)
        if beyond.any():
            low, high, found = (t[beyond] - limits.margin for t in (lowest, highest, value))
            raise ValueError(
                f"expected a diagonal between {low.min().item():.6g} and {high.max().item():.6g}, "
                f"which is what {self.name} reaches, got {len(found)} of {value.numel()} entries "
                f"beyond, from {found.min().item():.6g} to {found.max().item():.6g}"
            )

    def _like(self, argument: Tensor, result: object, what: str) -> Tensor:
        """What a user's function returned, if it may take the place of its argument."""
        got = type(result).__name__
        if isinstance(result, Tensor):
            if (result.shape, result.dtype) == (argument.shape, argument.dtype):
                return result
            got = f"shape {tuple(result.shape)}, {result.dtype}"
        raise ValueError(
            f"expected the {what} of {self.name} to return shape {tuple(argument.shape)}, "
            f"{argument.dtype} for such a tensor, got {got}"
        )


def chosen(parametrization: MapAndInverse, base: type, name: Callable[[], str]) -> ScalarMap:
    """The map of a ready class, unless the class has a map or an inverse of its own.

    Args:
        parametrization: an instance of the class.
        base: the class that all of them derive from.
        name: gives what a map of the class's own is called.

    Raises:
        NotImplementedError: if the map or the inverse is not defined.
        TypeError: if a base defines one, but stands too late among the bases to be asked.
    """
    cls = type(parametrization)
    ready: ScalarMap | None = getattr(parametrization, "scalar_map", None)
    for other in cls.__mro__[cls.__mro__.index(base) + 1 :]:
        late = vars(other).keys() & set(_NAMES)
        if late:
            raise TypeError(
                f"{cls.__name__}: expected {other.__name__}, which defines {' and '.join(late)}, "
                f"before {base.__name__} in the order of its bases"
            )
    missing = [n for n in _NAMES if getattr(cls, n) is getattr(base, n)]
    if ready is None and missing:
        raise NotImplementedError(f"{cls.__name__} must define {' and '.join(missing)}")
    return ready if ready and len(missing) == len(_NAMES) else OwnMap(parametrization, name)


def _summary(image: Tensor) -> float:
    """A single number, also where the map has a parameter for every entry."""
    image = image.double().flatten()
    ramp = torch.linspace(1, 2, image.numel(), dtype=image.dtype, device=image.device)
    return (image * ramp).mean().item()
