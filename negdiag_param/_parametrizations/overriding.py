"""Which scalar map a parametrization class brings: a ready one, or its own functions."""

from collections.abc import Callable

from negdiag_param._maths.own_map import MapAndInverse, OwnMap
from negdiag_param._maths.scalar_map import ScalarMap

_NAMES = ("map", "inverse")


def scalar_map(
    parametrization: MapAndInverse,
    base: type,
    name: Callable[[], str],
) -> ScalarMap:
    """The closed form of a ready class, unless the class has a map or an inverse of its own.

    Args:
        parametrization: an instance of the class.
        base: the class that all of them derive from.
        name: gives what a map of the class's own is called.

    Raises:
        NotImplementedError: if the map or the inverse is not defined.
        TypeError: if a base defines one, and stands too late among the bases to be asked.
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
        return closed_form
    if closed_form is None and missing:
        raise NotImplementedError(f"{cls.__name__} must define {' and '.join(missing)}")
    return OwnMap(parametrization, name)
