"""Replicas after what people do to them, and caches of what collectives write."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable import replicate
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.asserts import assert_exactly, weights
from tests.ranks.harness import on
from tests.ranks.models import N, make, registered, train

# Whether the model is registered before, and what is done to the replicas, or to the model.
CHANGES: dict[str, tuple[bool, Callable[[nn.Module, nn.Module], object]]] = {
    "removed": (True, lambda replicas, _: remove_negative_diagonal(replicas, "*.weight")),
    "removed within": (True, lambda _, model: remove_negative_diagonal(model, "*.weight")),
    "removed from a layer": (True, lambda _, model: remove_negative_diagonal(model[0])),
    "removed and registered": (
        True,
        lambda _, model: register_negative_diagonal(
            remove_negative_diagonal(model, "*.weight"), "*.weight", map="softplus"
        ),
    ),
    "assigned": (True, lambda _, model: setattr(model[0], "weight", -2 * torch.ones(N, N))),
    "initialised": (True, lambda replicas, _: init_(replicas, "*0.weight", nn.init.ones_)),
    "registered": (False, lambda replicas, _: register_negative_diagonal(replicas, "*.weight")),
    "registered within": (False, lambda _, model: register_negative_diagonal(model, "*.weight")),
    "registered on a layer": (False, lambda _, model: register_negative_diagonal(model[2])),
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
    before, change = CHANGES[name]
    alone, model = (registered("exp") if before else make() for _ in range(2))
    replicas = WRAP[wrap](model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.02) for m in (alone, model)]
    for steps in (1, 3):
        if steps == 3:
            change(alone, alone)
            change(replicas, model)
        train(alone, split=False, steps=steps, optimizer=optimizers[0])
        train(replicas, split=True, steps=steps, optimizer=optimizers[1])
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    for parameter in model.parameters():
        copies = [torch.empty_like(parameter) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, parameter.detach())
        assert all(torch.equal(copy, copies[0]) for copy in copies)


@on(2)
def test_names_are_those_of_the_wrapper_which_is_no_obstacle_to_a_neighbour() -> None:
    replicas = DistributedDataParallel(registered("exp"))
    register_negative_diagonal(nn.ModuleList([replicas, make()]), "1.*.weight")
    names = [name for name, _ in negative_diagonals(replicas)]
    assert names == ["module.0.weight", "module.2.weight"]
    assert list(plain_state_dict(replicas)) == list(DistributedDataParallel(make()).state_dict())


@on(1)
def test_a_plain_checkpoint_that_a_wrapper_hides_is_not_left_out_in_silence() -> None:
    plain = make().state_dict()
    for wrap in (DistributedDataParallel, torch.compile):
        for options in ({}, {"full_state_dict": True}):
            model = registered("exp")
            before = weights(model)
            for strict in (True, False):
                found = StateDictOptions(strict=strict, **options)
                message = "0.weight: expected a checkpoint of the registered model, got 0.weight"
                message = "Missing key" if strict else message
                with pytest.raises(RuntimeError, match=message):
                    set_model_state_dict(wrap(model), dict(plain), options=found)
            assert_exactly(weights(model), before)
            set_model_state_dict(wrap(model), registered("exp").state_dict())
            set_model_state_dict(model, dict(plain), options=StateDictOptions(**options))


def received(tensor: Tensor) -> None:
    """From the first rank, by the last one."""
    if dist.get_rank() == dist.get_world_size() - 1 > 0:
        dist.recv(tensor, 0)
    elif dist.get_rank() == 0 < dist.get_world_size() - 1:
        dist.send(torch.full((N, N), -3.0), dist.get_world_size() - 1)


def scattered(tensor: Tensor) -> None:
    parts = [torch.full((N, N), -3.0) for _ in range(dist.get_world_size())]
    dist.scatter(tensor, parts if dist.get_rank() == 0 else None, src=0)


COLLECTIVES: dict[str, Callable[[Tensor], object]] = {
    "broadcast": lambda tensor: dist.broadcast(tensor, src=0),
    "all_reduce": dist.all_reduce,
    "all_reduce, async": lambda tensor: dist.all_reduce(tensor, async_op=True).wait(),
    "reduce": lambda tensor: dist.reduce(tensor, dst=0),
    "scatter": scattered,
    "recv": received,
}
TARGETS: list[Callable[[nn.Module], Tensor]] = [
    lambda layer: layer.parametrizations.weight.original.data,
    lambda layer: layer.parametrizations.weight.original.detach(),
    lambda layer: layer.state_dict()["parametrizations.weight.original"],
]


@pytest.mark.parametrize("name", COLLECTIVES)
@on(1, 2)
def test_no_cache_outlives_a_collective(name: str) -> None:
    """They write into originals without moving a version counter."""
    for target in TARGETS:
        for block in (nullcontext, parametrize.cached):
            layer = register_negative_diagonal(nn.Linear(N, N), cache_in_eval=True).eval()
            layer.weight = torch.full((N, N), -1.0 - dist.get_rank())
            with torch.no_grad(), block():
                assert layer.weight is layer.weight
                COLLECTIVES[name](target(layer))
                assert torch.equal(layer.weight, layer.parametrizations.weight.original), name
                assert layer.weight is layer.weight
