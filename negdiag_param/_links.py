"""Weak references between modules, which deep copies and pickles redirect to the copies."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar
from weakref import ref

from torch import nn
from typing_extensions import Self

M = TypeVar("M", bound=nn.Module)


class Links(Generic[M]):
    """Weak references to modules that contain the one which holds them.

    A copy of the whole has links to the copies, since those are known before their contents are
    copied; a copy of the part alone has none.
    """

    def __init__(self, modules: Iterable[M] = ()) -> None:
        self._refs = [ref(module) for module in modules]

    def __iter__(self) -> Iterator[M]:
        return iter([module for module in (found() for found in self._refs) if module is not None])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(memo[id(module)] for module in self if id(module) in memo)

    def __reduce__(self) -> tuple[type[Self], tuple[list[M]]]:
        return type(self), (list(self),)

    def add(self, module: M) -> None:
        """Adds a link; those to modules that are gone are dropped."""
        self._refs = [ref(each) for each in (*self, module)]
