"""A dominating diagonal on shards: those of whole rows or columns, and what is refused."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard

from negdiag_param import ClampDiagonal, NegExpDiagonal, negative_diagonals
from negdiag_param import register_negative_diagonal as register
from tests.ranks.harness import on
from tests.ranks.layouts import Collectives, mesh, shard

# Shapes, options, the dimension that is cut for each choice, and one that may not be.
CASES = [
    ((7, 7), {}, {"rows": 0, "columns": 1}),
    ((12, 4), {"blocks": 3}, {"rows": 0, "columns": 1}),
    ((6, 3, 3), {"blocks": 2, "taps": "center"}, {"rows": 0, "columns": 1}),
    ((3, 4, 4), {"dims": (-2, -1)}, {"rows": 0, "columns": 0}),
]


@pytest.mark.parametrize("kind", ["rows", "columns"])
@on(2)
def test_shards_of_whole_rows_or_columns_have_parity(kind: str) -> None:
    """Without a collective. Sums may be rounded in another order."""
    for (shape, options, cut), cls in ((case, cls) for case in CASES for cls in MAPS):
        parametrization = cls(dominance=kind, infeasible="reflect", **options)
        x, grad, where = torch.randn(shape).double(), torch.randn(shape).double(), mesh()
        alone = x.clone().requires_grad_()
        weight = parametrization(alone)
        weight.backward(grad)
        placements = (Shard(cut[kind]),)
        sharded = shard(x, where, placements).requires_grad_()
        with Collectives() as collectives:
            found = parametrization(sharded)
            found.backward(shard(grad, where, placements))
        assert collectives.count == 0
        inverse = parametrization.right_inverse(shard(weight, where, placements))
        pairs = [(found, weight), (sharded.grad, alone.grad), (parametrization(inverse), weight)]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-13, atol=1e-13)


MAPS = ClampDiagonal, NegExpDiagonal


@on(2)
def test_shards_that_end_within_a_row_are_refused() -> None:
    whole = torch.randn(4, 4)
    for kind, dim in (("rows", 1), ("columns", 0), ("scaled", 0), ("scaled", 1)):
        with pytest.raises(ValueError, match=rf"weight: expected .* for dominance='{kind}'.*ranks"):
            NegExpDiagonal(dominance=kind)(shard(whole, mesh(), (Shard(dim),)))
    replicas = NegExpDiagonal(dominance="rows", infeasible="reflect")
    found = replicas(shard(whole, mesh(), (Replicate(),)))
    assert found.full_tensor().equal(replicas(whole))


@pytest.mark.parametrize("kind", ["rows", "columns", "scaled"])
@on(2)
def test_fully_shard_trains_as_one_process(kind: str) -> None:
    torch.manual_seed(0)
    alone, model = nn.Linear(5, 5), nn.Linear(5, 5)
    model.load_state_dict(alone.state_dict())
    for each in (alone, model):
        register(each, dominance=kind, map="softplus")
    fully_shard(model, mesh=mesh())
    batch = torch.randn(8, 5)
    for each in (alone, model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (each(batch) - batch).square().mean().backward()
            optimizer.step()
    (_, expected), (_, found) = *negative_diagonals(alone), *negative_diagonals(model)
    torch.testing.assert_close(found, expected)
