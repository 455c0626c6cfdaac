"""Collectives write into originals without moving a version counter; no cache outlives one."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.ranks.harness import on

N = 4


def received(tensor: Tensor) -> None:
    """From the first rank, by the last one."""
    if dist.get_rank() == 0:
        dist.send(torch.full((N, N), -3.0), dist.get_world_size() - 1)
    else:
        dist.recv(tensor, 0)


def scattered(tensor: Tensor) -> None:
    parts = [torch.full((N, N), -3.0) for _ in range(dist.get_world_size())]
    dist.scatter(tensor, parts if dist.get_rank() == 0 else None, src=0)


def broadcast(tensor: Tensor) -> None:
    dist.broadcast(tensor, src=0)


def waited_for(tensor: Tensor) -> None:
    dist.all_reduce(tensor, async_op=True).wait()


COLLECTIVES: dict[str, Callable[[Tensor], object]] = {
    "broadcast": broadcast,
    "all_reduce": dist.all_reduce,
    "all_reduce, async": waited_for,
    "reduce": lambda tensor: dist.reduce(tensor, dst=0),
    "scatter": scattered,
    "recv": received,
}
TARGETS: dict[str, Callable[[nn.Module], Tensor]] = {
    "the original": lambda layer: layer.parametrizations.weight.original.data,
    "its detached self": lambda layer: layer.parametrizations.weight.original.detach(),
    "a state dict's entry": lambda layer: layer.state_dict()["parametrizations.weight.original"],
}


def assert_no_cache_outlives(name: str) -> None:
    rank = dist.get_rank()
    for target in TARGETS.values():
        for block in (nullcontext, parametrize.cached):
            layer = register_negative_diagonal(nn.Linear(N, N), cache_in_eval=True).eval()
            layer.weight = torch.full((N, N), -1.0 - rank)
            with torch.no_grad(), block():
                assert layer.weight is layer.weight
                COLLECTIVES[name](target(layer))
                original = layer.parametrizations.weight.original
                assert torch.equal(layer.weight, original), name
                assert layer.weight is layer.weight


@pytest.mark.parametrize("name", COLLECTIVES)
@on(2)
def test_no_cache_outlives_a_collective(name: str) -> None:
    assert_no_cache_outlives(name)


@pytest.mark.parametrize("name", [name for name in COLLECTIVES if name != "recv"])
@on(1)
def test_no_cache_outlives_a_collective_of_one_rank(name: str) -> None:
    assert_no_cache_outlives(name)
