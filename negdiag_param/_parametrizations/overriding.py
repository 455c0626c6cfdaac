"""Whether a subclass brings a map or an inverse of its own."""

NAMES = ("map", "inverse")


def overridden(cls: type, base: type) -> set[str]:
    """Which of ``map`` and ``inverse`` are not those of ``base``.

    Raises:
        TypeError: if another class defines one, and stands too late among the bases to be asked.
    """
    for other in cls.__mro__[cls.__mro__.index(base) + 1 :]:
        late = vars(other).keys() & NAMES
        if late:
            raise TypeError(
                f"{cls.__name__}: expected {other.__name__}, which defines {' and '.join(late)}, "
                f"before {base.__name__} in the order of its bases"
            )
    return {name for name in NAMES if getattr(cls, name) is not getattr(base, name)}
