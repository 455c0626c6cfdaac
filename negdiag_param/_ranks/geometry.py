"""Which rows and columns a rank holds, and where the diagonal runs through them. Integers only.

The rows and the columns of a shard are ranges of the global ones. In a shard that starts at row
r and column c the global diagonal is the one with the offset r - c, so what is left to do is the
ordinary operation on an ordinary tensor, once for every such line: one as a rule, up to three
where a shard cuts through ``blocks``, and more for strided placements.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Split(NamedTuple):
    """How one mesh dimension splits one tensor dimension."""

    dim: int
    chunks: int
    chunk: int  # the one that this rank holds
    factor: int  # above 1 for strided shards: so many pieces are split, each into chunks


class Line(NamedTuple):
    """A diagonal in a part of a shard: the start and the length of the part in every dimension."""

    box: tuple[tuple[int, int], ...]
    blocks: int = 1
    offset: int = 0


def owned(shape: Sequence[int], splits: Sequence[Split]) -> list[list[range]]:
    """The global indices that a rank holds in each dimension, as ranges in local order."""
    found = [[range(size)] if size else [] for size in shape]
    for dim, chunks, chunk, factor in splits:
        strided = [_chunk(found[dim], factor, i) for i in range(factor)]
        found[dim] = [run for runs in strided for run in _chunk(runs, chunks, chunk)]
    return found


def lines(
    shape: Sequence[int],
    held: Sequence[Sequence[range]],
    dims: tuple[int, ...],
    blocks: int,
    center: bool,
) -> list[Line]:
    """The lines of the diagonal in what a rank holds; none may be left.

    Args:
        shape: of the whole tensor.
        held: what :func:`owned` says of the rank.
        dims: the row and the column dimension, or none.
        blocks: how many matrices are stacked along the rows.
        center: whether only the centre of all other dimensions counts.
    """
    box = [(0, sum(map(len, runs))) for runs in held]
    if not dims:
        return [Line(tuple(box))]
    row, column = dims
    if center:
        for dim in range(2, len(shape)):
            tap = (shape[dim] - 1) // 2
            found = [at + run.index(tap) for at, run in _placed(held[dim]) if tap in run]
            if not found:
                return []
            box[dim] = found[0], 1
    size = max(shape[row] // blocks, 1)
    result = []
    for top, rows in _placed(held[row]):
        for start, stop in _cuts(rows, size):
            for left, columns in _placed(held[column]):
                # Where the line meets the first row of the box, in columns of the box.
                offset = start % size - columns.start
                stacked = max((stop - start) // size, 1)
                height = (stop - start) // stacked
                if -height < offset < len(columns):
                    box[row] = top + start - rows.start, stop - start
                    box[column] = left, len(columns)
                    result.append(Line(tuple(box), stacked, offset))
    return result


def _chunk(runs: Sequence[range], chunks: int, index: int) -> list[range]:
    """What ``torch.chunk`` would put into chunk ``index`` of the indices in ``runs``."""
    size = -(-sum(len(run) for run in runs) // chunks)
    return [
        range(
            run.start + max(size * index - at, 0),
            min(run.start + size * (index + 1) - at, run.stop),
        )
        for at, run in _placed(runs)
        if at < size * (index + 1) and at + len(run) > size * index
    ]


def _placed(runs: Sequence[range]) -> Iterator[tuple[int, range]]:
    """Every range with the local index that it starts at."""
    at = 0
    for run in runs:
        yield at, run
        at += len(run)


def _cuts(rows: range, size: int) -> list[tuple[int, int]]:
    """The rows cut so that each piece lies within a block of ``size`` or holds whole blocks."""
    first, last = -(-rows.start // size) * size, rows.stop // size * size
    bounds = [rows.start, first, last, rows.stop] if first <= last else [rows.start, rows.stop]
    return [(a, b) for a, b in pairwise(bounds) if a < b]
