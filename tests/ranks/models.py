"""Models that are the same on every rank, their training and their weights."""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from negdiag_param import negative_diagonals, register_negative_diagonal

MAPS = ("exp", "softplus", "sign_flip")
N = 7  # uneven on any number of ranks
EVEN = 12  # what tensor parallelism itself asks for
PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def make(n: int = N) -> nn.Sequential:
    """The same model on every rank."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))


def registered(map: str = "exp", n: int = N, **options: object) -> nn.Sequential:
    return register_negative_diagonal(make(n), "*.weight", map=map, **options)


def sharded(with_diagonal: bool = True, map: str = "exp", **options: object) -> nn.Sequential:
    return shard(registered(map) if with_diagonal else make(), **options)


def shard(model: nn.Sequential, **options: object) -> nn.Sequential:
    """Both layers, and the model around them."""
    for layer in (model[0], model[2], model):
        fully_shard(layer, **options)
    return model


@functools.cache
def world() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    """As many rows as suit 1, 2, 3 and 4 ranks. The target pulls the diagonals upwards."""
    torch.manual_seed(2)
    x = torch.randn(24, n)
    return x, -3 * x


def train(model: nn.Module, *, split: bool | DeviceMesh, steps: int = 3) -> Tensor:
    """A few steps towards a positive diagonal; on this rank's rows only if the data is split."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return train_with(optimizer, model, split=split, steps=steps)


def train_with(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, split: bool | DeviceMesh, steps: int
) -> Tensor:
    x, y = batch(next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features)
    if split:
        mesh = world() if split is True else split
        x, y = (part.chunk(mesh.size())[mesh.get_local_rank()] for part in (x, y))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.detach()


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(model: nn.Sequential) -> list[Tensor]:
    return [whole(model[i].weight) for i in (0, 2)]


def assert_weights(model: nn.Sequential, expected: list[Tensor], tolerance: float = 0) -> None:
    for ours, theirs in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert ours.diagonal().max() < 0


def assert_originals_feasible(model: nn.Module) -> None:
    """As a step leaves them that clamps them."""
    originals = [p for name, p in model.named_parameters() if name.endswith("weight.original")]
    assert originals
    assert all(whole(original).diagonal().max() < 0 for original in originals)


def assert_same_weights(model: nn.Sequential, alone: nn.Sequential) -> None:
    assert all(map(torch.equal, weights(model), weights(alone)))


def assert_same_diagonals(model: nn.Sequential, alone: nn.Sequential) -> None:
    for (name, ours), (same, theirs) in zip(
        negative_diagonals(model), negative_diagonals(alone), strict=True
    ):
        assert name == same
        assert whole(ours).equal(theirs)


def assert_trained_alike(model: nn.Sequential, alone: nn.Sequential) -> None:
    assert_weights(model, weights(alone), 1e-6)


def assert_communicates_as_without(
    build: Callable[[bool], nn.Sequential], split: bool | DeviceMesh
) -> None:
    """A step of the registered model does what a step of the plain model does."""
    counts = {}
    for with_diagonal in (False, True):
        model = build(with_diagonal)
        train(model, split=split, steps=1)
        with CommDebugMode() as debug:
            train(model, split=split, steps=1)
        counts[with_diagonal] = dict(debug.get_comm_counts())
    assert counts[True] == counts[False] != {}
