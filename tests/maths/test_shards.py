"""Which part of a tensor a rank holds, and where the diagonal lies in that: by counting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._ranks import geometry, placements
from negdiag_param._ranks.geometry import Split
from negdiag_param._ranks.part import Part
from tests.support.wheres import wheres

examples = settings(max_examples=300, deadline=None, derandomize=True)


@st.composite
def splits(draw: st.DrawFn, ndim: int) -> list[Split]:
    """By a mesh of up to three dimensions, with the chunks of one rank."""
    found = []
    for _ in range(draw(st.integers(0, 3))):
        chunks = draw(st.integers(1, 4))
        chunk = draw(st.integers(0, chunks - 1))
        factor = draw(st.sampled_from([1, 1, 2, 3]))
        found.append(Split(draw(st.integers(0, ndim - 1)), chunks, chunk, factor))
    return found


def held(size: int, splits: list[Split]) -> list[int]:
    """The indices of one dimension that are left after all splits, as ``torch.chunk`` has them."""
    indices = torch.arange(size)
    for _, chunks, chunk, factor in splits:
        parts = [(*piece.chunk(chunks), *[indices[:0]] * chunks) for piece in indices.chunk(factor)]
        indices = torch.cat([part[chunk] for part in parts])
    return indices.tolist()


@examples
@given(st.data())
def test_a_rank_holds_what_chunks_leave_it(data):
    shape = data.draw(st.lists(st.integers(0, 13), min_size=1, max_size=3))
    made = data.draw(splits(len(shape)))
    owned = geometry.owned(shape, made)
    for dim, (size, runs) in enumerate(zip(shape, owned, strict=True)):
        found = [index for run in runs for index in run]
        assert found == held(size, [split for split in made if split.dim == dim])
        assert all(0 <= run.start < run.stop <= size for run in runs)


@examples
@given(st.data())
def test_the_lines_are_the_diagonal_of_what_a_rank_holds(data):
    where = data.draw(wheres())
    made = data.draw(splits(len(where.shape)))
    diagonal = Diagonal(**where.options)
    dims, center = diagonal.resolved(len(where.shape)), diagonal.taps == "center"
    owned = geometry.owned(where.shape, made)
    expected = where.mask()
    for dim, runs in enumerate(owned):
        indices = [index for run in runs for index in run]
        expected = expected.index_select(dim, torch.tensor(indices, dtype=torch.int64))
    found = torch.zeros(expected.shape, dtype=torch.int64)
    for line in geometry.lines(where.shape, owned, dims, diagonal.blocks, center):
        part = Part(dims, line.blocks, "all", line.offset, line.box)
        entries = part.view(found)
        assert entries.numel() or not expected.any()
        scattered = part.scattered(found, entries + 1)
        entries += 1
        assert found.equal(scattered)
    assert found.equal(expected.long())


STRIDED = _StridedShard(0, split_factor=2)
UNEVEN = [
    (13, (STRIDED,), (2,), 4),
    (10, (STRIDED,), (2,), 4),
    (15, (STRIDED,), (3,), 6),
    (12, (Shard(0), STRIDED), (2, 2), 4),
    (12, (STRIDED, STRIDED), (2, 2), 4),
]


@pytest.mark.parametrize(("size", "places", "mesh", "divisor"), UNEVEN, ids=str)
def test_uneven_strided_shards_are_refused(size, places, mesh, divisor):
    expected = f"weight: expected dimension 0 of .* to be divisible by {divisor} for strided"
    with pytest.raises(ValueError, match=expected):
        placements.parts((size, 4), (), places, mesh, (0,) * len(mesh), Diagonal(), "weight")
