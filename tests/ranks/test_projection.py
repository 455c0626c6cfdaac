"""After a step, each rank clamps what it holds of the diagonal: ``map="clamp"`` on shards."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from negdiag_param import register_negative_diagonal
from tests.ranks.asserts import assert_exactly, whole
from tests.ranks.harness import on
from tests.ranks.kinds import FSDP1, KINDS, every_kind, kinds, split_of
from tests.ranks.layouts import Collectives
from tests.ranks.models import EVEN, share

UP_AND_DOWN = (3.0,) * 3 + (-3.0,) * 4
OPTIMIZERS = {
    "sgd": lambda given: [torch.optim.SGD(given, lr=0.05, momentum=0.9)],
    "adam": lambda given: [torch.optim.Adam(given, lr=0.2)],
    "one each": lambda given: [torch.optim.Adam([p], lr=0.2) for p in given],
}


class Sum(nn.Sequential):
    """Gives the sum of its weights for the identity, exactly, so that gradients are exact too.

    Of those, the first and the last are registered.
    """

    plan: ClassVar = {
        "0": ColwiseParallel(output_layouts=Replicate()),
        "2": RowwiseParallel(input_layouts=Replicate()),
    }

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + self[1](x) + self[2](x)


def feasible() -> Sum:
    torch.manual_seed(1)
    model = Sum(*(nn.Linear(EVEN, EVEN, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.uniform_(layer.weight, -0.9, -0.3)
    return model


def wrapped(kind: str, margin: float) -> nn.Module:
    return KINDS[kind].wrap(
        feasible(), lambda model: register_negative_diagonal(model, "[02].weight", margin=margin)
    )


def clamp(model: Sum, margin: float) -> bool:
    """By hand; whether that changed anything."""
    bound = -margin or -torch.finfo(torch.float32).tiny
    diagonals = torch.stack([model[0].weight.diagonal(), model[2].weight.diagonal()])
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.diagonal().clamp_(max=bound)
    return bool((diagonals > bound).any())


def pull(model: nn.Module, target: float, split: bool | DeviceMesh, squared: bool = True) -> None:
    """Towards the target, with gradients that depend on the weights if squared."""
    part, parts = share(split)
    output = model(torch.eye(EVEN).chunk(parts)[part])
    (parts * ((output - target).square() if squared else -target * output).sum()).backward()


def states(optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Tensor]]:
    found = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [{key: whole(value) for key, value in state.items()} for state in found]


@pytest.mark.parametrize("margin", [0.0, 0.25])
@pytest.mark.parametrize("way", OPTIMIZERS)
@every_kind(*FSDP1)
@on()
def test_trains_as_a_plain_layer_that_is_clamped_after_each_step(
    kind: str, way: str, margin: float
) -> None:
    alone, model = feasible(), wrapped(kind, margin)
    ours, theirs = list(model.parameters()), list(alone.parameters())
    optimizers, others = OPTIMIZERS[way](ours), OPTIMIZERS[way](theirs)

    def step(optimizer: torch.optim.Optimizer) -> None:
        with Collectives() as collectives:
            optimizer.step()
        assert collectives.count == 0
        optimizer.zero_grad()

    in_backward = way == "one each" and kind != "ddp"  # which reduces after these hooks
    if in_backward:
        for parameter, optimizer in zip(ours, optimizers, strict=True):
            parameter.register_post_accumulate_grad_hook(lambda _, of=optimizer: step(of))
    went_beyond = []
    for target in UP_AND_DOWN:
        pull(model, target, split_of(kind))
        pull(alone, target, split=False)
        for optimizer in others if in_backward else [*optimizers, *others]:
            step(optimizer)
        went_beyond.append(clamp(alone, margin))
        assert_exactly([whole(mine) for mine in ours], [other.detach() for other in theirs])
    assert {*went_beyond} == {True, False}
    assert_exactly(states(optimizers), states(others))


@kinds(*FSDP1)
@on()
def test_flat_pieces_are_left_alone_and_the_weight_is_clamped(kind: str) -> None:
    alone, model = feasible(), wrapped(kind, 0.25)
    both = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, alone)]
    for target in UP_AND_DOWN[:4]:
        for m, optimizer, split in zip((model, alone), both, (True, False), strict=True):
            optimizer.zero_grad()
            pull(m, target, split, squared=False)
            optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        for i in (0, 2):
            assert model[i].parametrizations.weight.original.equal(alone[i].weight)
        assert clamp(alone, 0.25)
        for layer, other in zip(model, alone, strict=True):
            assert layer.weight.equal(other.weight)
