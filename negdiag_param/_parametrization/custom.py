"""Maps that users define by a ``map`` and an ``inverse``, which are tested at each inversion."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from negdiag_param._maths.limits import Limits
from negdiag_param._maths.strict import ScalarMap
from negdiag_param._parametrization.invert import summary

_NAMES = ("map", "inverse")
_PROBES = (-8.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 8.0)
_SAMPLES = (-3.0, -1.0, 0.25, 1.0, 3.0)
_FAR = 1e4  # where a bounded map has practically reached its limits


class OwnMap(ScalarMap):
    """``map(x) - margin``, where ``functions`` has the ``map`` and its ``inverse``."""

    has_slope = False

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.name = type(functions).__name__

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        image: Tensor = self._functions.map(x)
        return image - limits.margin if limits.margin else image

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        """A finite ``x`` that maps to the feasible ``value``."""
        self._try_map(value)
        value = (value + limits.margin).clamp(max=-limits.nearest)
        try:
            x = self._like(value, self._functions.inverse(value.clone()), "inverse")
        except NotImplementedError as error:  # PyTorch would go on without an inverse
            raise ValueError(f"expected an inverse of {self.name}, got {error!r}") from error
        back = self._like(x, self._functions.map(x), "map")
        # One percent; near zero, the rounding error of a map with slopes up to one, and 1e-5.
        tolerance = 1e-2 * value.abs() + 16 * torch.finfo(x.dtype).eps * (1 + x.abs()) + 1e-5
        if not (x.isfinite() & ((back - value).abs() <= tolerance)).all():
            self._check_within_reach(value, limits)
            raise ValueError(
                f"expected an inverse that reaches the diagonal, but the inverse of {self.name} "
                f"does not lead back to values between {value.min().item():.6g} and "
                f"{value.max().item():.6g}"
            )
        return x

    def sampled(self) -> tuple[float, ...]:
        """Values of the map; empty if it cannot be tried on the CPU."""
        with torch.no_grad(), suppress(Exception):
            samples = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in _SAMPLES)
            images = [self._functions.map(sample).double().flatten() for sample in samples]
            # One number for each, also where the map has a parameter for every entry.
            return tuple(
                (t * torch.linspace(1, 2, len(t), dtype=t.dtype, device=t.device)).mean().item()
                for t in images
            )
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
        """Refuses values that a bounded map, such as a scaled sigmoid, does not reach."""
        ends = torch.stack([self._functions.map(torch.full_like(value, x)) for x in (-_FAR, _FAR)])
        beyond = (value < ends.amin(0)) | (value > ends.amax(0))
        if beyond.any():
            low, high, found = (t[beyond] - limits.margin for t in (*ends.sort(0).values, value))
            raise ValueError(
                f"expected a diagonal between {low.min().item():.6g} and {high.max().item():.6g}, "
                f"which is what {self.name} reaches, got {len(found)} of {value.numel()} entries "
                f"beyond, from {found.min().item():.6g} to {found.max().item():.6g}"
            )

    def _like(self, argument: Tensor, result: object, what: str) -> Tensor:
        """What a user's function returned, if it may take the place of its argument."""
        got = summary(result) if isinstance(result, Tensor) else type(result).__name__
        if isinstance(result, Tensor) and got == summary(argument):
            return result
        raise ValueError(
            f"expected the {what} of {self.name} to return {summary(argument)} for such a tensor, "
            f"got {got}"
        )


def chosen(parametrization: object, base: type) -> ScalarMap:
    """The map of a ready class below ``base``, unless it has a map or an inverse of its own."""
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
    return ready if ready and len(missing) == len(_NAMES) else OwnMap(parametrization)
