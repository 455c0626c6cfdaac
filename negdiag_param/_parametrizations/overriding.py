"""Which scalar map a parametrization class brings: a ready one, or its own functions."""

from collections.abc import Callable

from negdiag_param._maths.own_map import MapAndInverse, OwnMap
from negdiag_param._maths.resting import Resting
from negdiag_param._maths.scalar_map import ScalarMap
from negdiag_param._parametrizations.options import Options

_NAMES = ("map", "inverse")


def scalar_map(
    parametrization: MapAndInverse,
    base: type,
    name: Callable[[], str],
    options: Options,
) -> ScalarMap:
    """The closed form of a ready class, unless the class has a map or an inverse of its own.

    Args:
        parametrization: an instance of the class.
        base: the class that all of them derive from.
        name: gives what a map of the class's own is called.
        options: those of the diagonal.

    Raises:
        NotImplementedError: if the map or the inverse is not defined.
        TypeError: if a base defines one, and stands too late among the bases to be asked.
        ValueError: if a map of the class's own is to rest somewhere.
    """
    cls = type(parametrization)
    closed_form: ScalarMap | None = getattr(parametrization, "_closed_form", None)
    for other in cls.__mro__[cls.__mro__.index(base) + 1 :]:
        late = vars(other).keys() & set(_NAMES)
        if late:
            raise TypeError(
                f"{cls.__name__}: expected {other.__name__}, which defines {' and '.join(late)}, "
                f"before {base.__name__} in the order of its bases"
            )
    missing = [n for n in _NAMES if getattr(cls, n) is getattr(base, n)]
    if closed_form is not None and len(missing) == len(_NAMES):
        if options.rest is None:
            return closed_form
        return Resting(closed_form, options.rest, options.margin)
    if closed_form is None and missing:
        raise NotImplementedError(f"{cls.__name__} must define {' and '.join(missing)}")
    if options.rest is not None:
        raise ValueError(
            f"rest: expected one of the ready maps beside it, got {cls.__name__}; "
            f"let the map itself put 0 where the originals shall rest"
        )
    return OwnMap(parametrization, name)
