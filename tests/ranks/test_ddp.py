"""A registered model that DistributedDataParallel replicates."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable import replicate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import MAPS, N, assert_trained_alike, make, registered, train, train_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@pytest.mark.parametrize("map", MAPS)
@on(2)
def test_trains_as_one_process(map: str) -> None:
    alone, model = registered(map), registered(map)
    replicas = DistributedDataParallel(model)
    train(alone, split=False)
    train(replicas, split=True)
    assert_trained_alike(model, alone)


def change(name: str, replicas: nn.Module) -> None:
    """What people do to a replicated model, on every rank."""
    model = getattr(replicas, "module", replicas)
    if name == "removed":
        remove_negative_diagonal(replicas, "*.weight")
    elif name == "removed from a layer":
        remove_negative_diagonal(model[0])
    elif name == "registered":
        register_negative_diagonal(replicas, "*.weight")
    elif name == "registered within":
        register_negative_diagonal(model, "*.weight")
    elif name == "registered on a layer":
        register_negative_diagonal(model[2])
    elif name == "removed and registered":
        remove_negative_diagonal(model, "*.weight")
        register_negative_diagonal(model, "*.weight", map="softplus")
    elif name == "assigned":
        model[0].weight = -2 * torch.ones(N, N)


CHANGES = {
    "removed": True,
    "removed from a layer": True,
    "removed and registered": True,
    "assigned": True,
    "registered": False,
    "registered within": False,
    "registered on a layer": False,
}
WRAP = {
    "ddp": DistributedDataParallel,
    "ddp, unused found": partial(DistributedDataParallel, find_unused_parameters=True),
    "replicate": replicate,
}


@pytest.mark.parametrize("wrap", WRAP)
@pytest.mark.parametrize("name", CHANGES)
@on(2)
def test_replicas_stay_in_step_after(name: str, wrap: str) -> None:
    """At least three steps after the change, as one process that went through the same."""
    alone, model = (registered() if CHANGES[name] else make() for _ in range(2))
    replicas = WRAP[wrap](model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.02) for m in (alone, model)]
    for steps in (1, 3):
        if steps == 3:
            change(name, alone)
            change(name, replicas)
        train_with(optimizers[0], alone, split=False, steps=steps)
        train_with(optimizers[1], replicas, split=True, steps=steps)
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    for parameter in model.parameters():
        copies = [torch.empty_like(parameter) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, parameter.detach())
        assert all(torch.equal(copy, copies[0]) for copy in copies)


@on(2)
def test_communicates_as_without() -> None:
    def sent(model: nn.Module) -> list[torch.Size]:
        """What a step reduces, bucket by bucket; DDP's collectives are below what counts others."""
        replicas, buckets = DistributedDataParallel(model), []

        def note(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[Tensor]:
            buckets.append(bucket.buffer().shape)
            return allreduce_hook(group, bucket)

        replicas.register_comm_hook(dist.group.WORLD, note)
        train(replicas, split=True, steps=2)
        return buckets

    assert sent(registered()) == sent(make()) != []


@on(2)
def test_replicas_elsewhere_are_no_obstacle() -> None:
    container = nn.ModuleList([DistributedDataParallel(make()), make()])
    register_negative_diagonal(container, "1.*.weight")


@on(2)
def test_is_read_initialised_and_restored() -> None:
    model = registered()
    replicas = DistributedDataParallel(model)
    names = [name for name, _ in negative_diagonals(replicas)]
    assert names == ["module.0.weight", "module.2.weight"]
    init_(replicas, "module.0.weight", nn.init.constant_, 0.5)
    assert (model[0].weight.diagonal() - -0.5).abs().max() < 1e-6
    assert list(plain_state_dict(replicas)) == list(DistributedDataParallel(make()).state_dict())
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    train(replicas, split=True, steps=1)
