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
        return (module for found in self._refs if (module := found()) is not None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(memo[id(module)] for module in self if id(module) in memo)

    def __reduce__(self) -> tuple[type[Self], tuple[list[M]]]:
        return type(self), (list(self),)
