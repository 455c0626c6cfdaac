"""Models that are the same on every rank, and their training."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from negdiag_param import register_negative_diagonal
from tests.ranks.asserts import layers, whole

N = 7  # uneven on any number of ranks
EVEN = 12  # what tensor parallelism itself asks for
PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def make(n: int = N) -> nn.Sequential:
    """The same model on every rank."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))


def registered(map: str = "clamp", n: int = N, **options: object) -> nn.Sequential:
    return register_negative_diagonal(make(n), "*.weight", map=map, **options)


def shard(model: nn.Sequential, **options: object) -> nn.Sequential:
    """Both layers, and the model around them."""
    for layer in (model[0], model[2], model):
        fully_shard(layer, **options)
    return model


def share(split: bool | DeviceMesh) -> tuple[int, int]:
    """Which part of a batch this rank has, and how many there are."""
    if split is True:
        return dist.get_rank(), dist.get_world_size()
    return (split.get_local_rank(), split.size()) if split else (0, 1)


def batch(n: int = N, split: bool | DeviceMesh = False) -> tuple[Tensor, Tensor]:
    """As many rows as suit 1, 2, 3 and 4 ranks, or those of this rank if it is split.

    The target pulls the diagonals of both layers upwards.
    """
    torch.manual_seed(2)
    part, parts = share(split)
    x = torch.randn(24, n).chunk(parts)[part]
    return x, -3 * x


def train(
    model: nn.Module,
    *,
    split: bool | DeviceMesh,
    steps: int = 3,
    optimizer: torch.optim.Optimizer | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """A few steps towards a positive diagonal; on this rank's rows only if the data is split."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = batch(layers(model)[0].in_features, split)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        backward(loss)
        optimizer.step()
    return loss.detach()


def alone(n: int, steps: int, map: str = "clamp", **options: object) -> nn.Module:
    """What one process makes of a registered model in so many steps."""
    model = registered(map, n, **options)
    train(model, split=False, steps=steps)
    return model


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-0.5)
    return model


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return whole(model(batch(layers(model)[0].in_features)[0]))
