"""Placements that are none of the ordinary: strided shards, and what is refused."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

from negdiag_param import NegExpDiagonal, SignFlipDiagonal, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.layouts import Placements, mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@pytest.mark.parametrize(("shape", "blocks"), [((12, 12), 1), ((24, 6), 4), ((12, 3), 4)], ids=str)
@on(3, 4)
def test_strided_shards_have_parity(shape: tuple[int, int], blocks: int) -> None:
    """What a rank holds under fully_shard on top of tensor parallelism, read outside forward."""
    where, x = mesh(), torch.randn(shape)
    parametrization = SignFlipDiagonal(infeasible="reflect", blocks=blocks)
    with CommDebugMode() as debug:
        found = parametrization(shard_strided(x, where))
    assert debug.get_total_counts() == 0
    expected = shard_strided(parametrization(x), where)
    assert found.placements == strided(where)
    assert found.to_local().equal(expected.to_local())


@on(3, 4)
def test_uneven_strided_shards_are_refused() -> None:
    uneven = shard_strided(torch.randn(13, 13), mesh())
    with pytest.raises(ValueError, match=r"weight: expected dimension 0 of .* divisible by"):
        SignFlipDiagonal(infeasible="reflect")(uneven)


def strided(mesh: DeviceMesh) -> Placements:
    return (_StridedShard(0, split_factor=2), Shard(0))[: mesh.ndim]


def shard_strided(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """As the docstring of the placement has it: split into factors, then each into chunks."""
    coordinate = mesh.get_coordinate()
    local = torch.cat([
        piece.chunk(mesh.size(0))[coordinate[0]] for piece in tensor.detach().chunk(2)
    ])
    if mesh.ndim > 1:
        local = local.chunk(mesh.size(1))[coordinate[1]]
    return DTensor.from_local(
        local.contiguous(), mesh, strided(mesh), shape=tensor.shape, stride=tensor.stride()
    )


@on(2)
def test_partial_sums_are_refused() -> None:
    partial = DTensor.from_local(torch.randn(7, 7), mesh(), [Partial()], run_check=False)
    for use in (NegExpDiagonal(), NegExpDiagonal().right_inverse):
        expected = "weight: expected Shard or Replicate placements, found .*Partial.*redistribute"
        with pytest.raises(ValueError, match=expected):
            use(partial)
    layer = nn.Linear(7, 7, bias=False)
    layer.weight = nn.Parameter(partial)
    with pytest.raises(ValueError, match="weight: expected Shard or Replicate placements"):
        register_negative_diagonal(layer)
    assert type(layer) is nn.Linear


@on(2)
def test_other_shards_than_chunks_are_refused() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    rows = 2 if rank == 0 else 4
    total = 2 + 4 * (ranks - 1)
    odd = DTensor.from_local(
        torch.randn(rows, total), mesh(), [Shard(0)], shape=(total, total), stride=(total, 1)
    )
    with pytest.raises(ValueError, match="weight: expected a shard of shape"):
        NegExpDiagonal()(odd)


@on(2)
def test_meshes_that_do_not_list_ranks_in_order_are_refused() -> None:
    mesh, layer = DeviceMesh("cpu", [1, 0]), nn.Linear(4, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    parametrization = NegExpDiagonal(infeasible="reflect")
    with pytest.raises(ValueError, match=r"weight: expected a mesh that lists ranks in ascending"):
        register_negative_diagonal(layer)
    with pytest.raises(ValueError, match=r"weight: expected a mesh that lists ranks in ascending"):
        parametrization(layer.weight)
    assert type(layer) is nn.Linear
