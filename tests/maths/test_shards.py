"""Which part of a tensor a rank holds, and where the diagonal lies in that: by counting."""

from itertools import product
from math import prod
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._ranks import shards
from tests.support.wheres import wheres

examples = settings(max_examples=300, deadline=None, derandomize=True)


class Mesh(NamedTuple):
    """As much of a DeviceMesh as says where a rank stands in it."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def mesh(self) -> Tensor:
        return torch.arange(prod(self.shape)).view(self.shape)


class Layout(NamedTuple):
    placements: tuple[Placement, ...]
    mesh: Mesh
    coordinate: tuple[int, ...]


@st.composite
def layouts(draw: st.DrawFn, ndim: int) -> Layout:
    """On a mesh of up to three dimensions; or the first of them is that of fully_shard."""
    mesh = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    placements = [
        draw(st.sampled_from([Replicate(), *map(Shard, range(ndim)), Shard(0)])) for _ in mesh
    ]
    if placements and isinstance(placements[0], Shard):
        dim = placements[0].dim
        cut = prod(n for n, p in zip(mesh[1:], placements[1:], strict=True) if p == Shard(dim))
        if cut > 1 and draw(st.booleans()):
            placements[0] = _StridedShard(dim, split_factor=cut)
    coordinate = tuple(draw(st.integers(0, chunks - 1)) for chunks in mesh)
    return Layout(tuple(placements), Mesh(mesh), coordinate)


def indices(dim: int, size: int, layout: Layout) -> Tensor:
    """What is left of one dimension, as the docstrings of the placements have it."""
    found = torch.arange(size)
    for placement, chunks, chunk in zip(
        layout.placements, layout.mesh.shape, layout.coordinate, strict=True
    ):
        if placement != Replicate() and placement.dim == dim:
            pieces = found.chunk(getattr(placement, "split_factor", 1))
            found = torch.cat([[*p.chunk(chunks), *[p[:0]] * chunks][chunk] for p in pieces])
    return found


def splits_evenly(shape: list[int], layout: Layout) -> bool:
    strided = [p for p in layout.placements if isinstance(p, _StridedShard)]
    return all(shape[p.dim] % p.split_factor == 0 for p in strided)


@examples
@given(st.data())
def test_a_rank_holds_what_chunks_leave_it(data):
    shape = data.draw(st.lists(st.integers(0, 13), min_size=1, max_size=3))
    layout = data.draw(layouts(len(shape)))
    assume(splits_evenly(shape, layout))
    placements, mesh, coordinate = layout
    for dim, held in enumerate(shards.ranges(shape, placements, mesh, coordinate)):
        assert [*held] == indices(dim, shape[dim], layout).tolist()


@examples
@given(st.data())
def test_the_parts_are_the_diagonal_of_what_a_rank_holds(data):
    where = data.draw(wheres())
    layout = data.draw(layouts(len(where.shape)))
    assume(splits_evenly(where.shape, layout))
    expected = where.mask()
    for dim, size in enumerate(where.shape):
        expected = expected.index_select(dim, indices(dim, size, layout))
    found = torch.zeros(expected.shape, dtype=torch.int64)
    diagonal = Diagonal(**where.options)
    for box, place in shards.find_parts(where.shape, tuple(found.shape), *layout, diagonal):
        piece = found[box]
        scattered = place.replaced(piece, lambda entries: entries + 1)
        exported = place.replaced(piece, lambda entries: entries + 1, traced=True)
        entries = place.view(piece)
        assert entries.numel() or 0 in found.shape
        entries += 1
        assert piece.equal(scattered)
        assert piece.equal(exported)
    assert found.equal(expected.long())


def test_shards_cut_through_blocks():
    sizes = range(1, 5)
    for blocks, rows, columns, chunks in product(sizes, sizes, sizes, range(2, 6)):
        shape = blocks * rows, columns
        expected = torch.eye(rows, columns, dtype=torch.int64).repeat(blocks, 1)
        for chunk, (placement, other) in product(range(chunks), SIDES):
            layout = (placement, other), Mesh((chunks, 2)), (chunk, chunk % 2)
            kept = [indices(dim, size, Layout(*layout)) for dim, size in enumerate(shape)]
            found = torch.zeros([len(left) for left in kept], dtype=torch.int64)
            diagonal = Diagonal(blocks=blocks)
            for box, place in shards.find_parts(shape, tuple(found.shape), *layout, diagonal):
                entries = place.view(found[box])
                assert entries.numel() or not found.numel()
                entries += 1
            assert found.equal(expected[kept[0]][:, kept[1]])


SIDES = [(Shard(0), Replicate()), (Shard(0), Shard(1)), (Shard(1), Replicate())]


STRIDED = _StridedShard(0, split_factor=2)
UNKNOWN = [
    (13, (STRIDED, Shard(0)), (2, 2)),  # uneven
    (12, (STRIDED,), (2,)),  # not over any other
    (12, (STRIDED, Shard(1)), (2, 2)),
    (12, (STRIDED, Shard(0)), (2, 3)),
    (12, (Shard(0), STRIDED), (2, 2)),
    (12, (STRIDED, STRIDED), (2, 2)),
    (12, (Shard(0), STRIDED, Shard(0)), (2, 2, 2)),
]


@pytest.mark.parametrize(("size", "placements", "mesh"), UNKNOWN, ids=str)
def test_other_strided_shards_are_refused(size, placements, mesh):
    with pytest.raises(ValueError, match=r"expected .* fully_shard .*_StridedShard\(.*"):
        shards.find_parts((size, 4), (), placements, Mesh(mesh), (0,) * len(mesh), Diagonal())
