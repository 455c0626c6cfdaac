"""Both at once, on a grid of four ranks: parallelize, then register, then fully_shard."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

from negdiag_param import init_, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.kinds import mesh
from tests.ranks.models import (
    EVEN,
    PLAN,
    assert_same_diagonals,
    assert_same_weights,
    assert_trained_alike,
    make,
    registered,
    shard,
    train,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


def sharded_twice() -> nn.Sequential:
    grid = mesh("dp", "tp")
    model = parallelize_module(make(EVEN), grid["tp"], PLAN)
    register_negative_diagonal(model, "*.weight", map="exp")
    return shard(model, mesh=grid["dp"])


@on(4)
def test_trains_as_one_process() -> None:
    alone, model = registered(n=EVEN), sharded_twice()
    train(alone, split=False)
    train(model, split=mesh("dp", "tp")["dp"])
    assert_trained_alike(model, alone)
    # Tensor parallelism and FSDP2 both cut the rows of the first layer.
    assert "_StridedShard" in repr(model[0].weight.placements)
    assert model[2].weight.placements == (Shard(0), Shard(1))


@on(4)
def test_is_read_assigned_initialised_and_monitored() -> None:
    alone, model = registered(n=EVEN), sharded_twice()
    value = torch.randn(EVEN, EVEN).fill_diagonal_(-2)
    for m in (alone, model):
        init_(m, "2.weight", nn.init.orthogonal_)
        init_(m, "2.weight", nn.init.eye_)
        m[0].weight = value
    assert_same_weights(model, alone)
    assert_same_diagonals(model, alone)
