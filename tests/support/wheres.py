"""Shapes with a place of the diagonal, drawn at random."""

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


class Where(NamedTuple):
    """A shape and the options that say where its diagonal lies."""

    shape: tuple[int, ...]
    options: dict[str, Any]

    def mask(self) -> Tensor:
        """True for diagonal entries, told by their indices."""
        ndim = len(self.shape)
        rows, columns = self.options.get("dims") or (0, 1)
        if ndim < 2 or self.options.get("dims") == ():
            return torch.ones(self.shape, dtype=torch.bool)
        steps = torch.meshgrid(*map(torch.arange, self.shape), indexing="ij")
        height = max(self.shape[rows] // self.options.get("blocks", 1), 1)
        mask = steps[rows] % height == steps[columns]
        if self.options.get("taps") == "center":
            for step, size in zip(steps[2:], self.shape[2:], strict=True):
                mask = mask & (step == (size - 1) // 2)
        return mask


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    """Of one to six dimensions, each of none to five entries."""
    ndim = draw(st.integers(1, 6))
    shape = draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim))
    kind = draw(st.sampled_from(["plain", "all", "dims", "blocks", "center"]))
    options: dict[str, Any] = {}
    if kind == "all":
        options["dims"] = ()
    elif kind == "dims" and ndim > 1:
        rows, columns = draw(st.permutations(range(ndim)))[:2]
        options["dims"] = (rows - ndim * draw(st.booleans()), columns)
    elif kind == "blocks" and ndim > 1:
        options["blocks"] = draw(st.integers(1, 4))
        shape[0] *= options["blocks"]
    elif kind == "center" and ndim > 2:
        options["taps"] = "center"
        shape[2:] = [max(size, 1) for size in shape[2:]]
        options["blocks"] = draw(st.integers(1, 3))
        shape[0] *= options["blocks"]
    return Where(tuple(shape), options)
