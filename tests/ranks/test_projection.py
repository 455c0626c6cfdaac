"""After a step, each rank clamps what it holds of the diagonal: ``map="clamp"`` on shards."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from negdiag_param import register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.kinds import FSDP1, KINDS, every_kind, split_of
from tests.ranks.layouts import Collectives
from tests.ranks.models import EVEN, whole, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

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


def plain() -> Sum:
    """With feasible diagonals."""
    torch.manual_seed(1)
    model = Sum(*(nn.Linear(EVEN, EVEN, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.uniform_(layer.weight, -0.9, -0.3)
    return model


def registered(model: nn.Module, margin: float) -> nn.Module:
    return register_negative_diagonal(model, "[02].weight", margin=margin)


def clamp(model: Sum, margin: float) -> None:
    bound = -margin or -torch.finfo(torch.float32).tiny
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.diagonal().clamp_(max=bound)


def pull(model: nn.Module, target: float, split: object, squared: bool = True) -> None:
    """Towards the target, with gradients that depend on the weights if squared."""
    x, scale = torch.eye(EVEN), 1
    if split:
        mesh = world() if split is True else split
        x, scale = x.chunk(mesh.size())[mesh.get_local_rank()], mesh.size()
    output = model(x)
    ((output - target).square() if squared else -target * output).sum().mul(scale).backward()


@pytest.mark.parametrize("margin", [0.0, 0.25])
@pytest.mark.parametrize("way", OPTIMIZERS)
@every_kind(*FSDP1)
@on()
def test_trains_as_a_plain_layer_that_is_clamped_after_each_step(
    kind: str, way: str, margin: float
) -> None:
    alone = plain()
    model = KINDS[kind].wrap(plain(), lambda bare: registered(bare, margin))
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
    beyond = 0
    for target in UP_AND_DOWN:
        pull(model, target, split_of(kind))
        for optimizer in () if in_backward else optimizers:
            step(optimizer)
        pull(alone, target, split=False)
        for optimizer in others:
            optimizer.step()
            optimizer.zero_grad()
        before = [parameter.detach().clone() for parameter in theirs]
        clamp(alone, margin)
        beyond += not all(map(torch.equal, before, theirs))
        for mine, plain_one in zip(ours, theirs, strict=True):
            assert whole(mine).equal(plain_one)
    assert 0 < beyond < len(UP_AND_DOWN)
    for optimizer, other in zip(optimizers, others, strict=True):
        for mine, plain_one in zip(ours, theirs, strict=True):
            for key, value in other.state[plain_one].items():
                assert whole(optimizer.state[mine][key]).equal(value), key


@pytest.mark.parametrize("kind", FSDP1)
@on(2)
def test_flat_pieces_are_left_alone_and_the_weight_is_clamped(kind: str) -> None:
    alone = plain()
    model = KINDS[kind].wrap(plain(), lambda bare: registered(bare, 0.25))
    both = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, alone)]
    for target in UP_AND_DOWN[:-1]:
        for m, optimizer, split in zip((model, alone), both, (True, False), strict=True):
            optimizer.zero_grad()
            pull(m, target, split, squared=False)
            optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        for i in (0, 2):
            assert model[i].parametrizations.weight.original.equal(alone[i].weight)
        clamp(alone, 0.25)
        for layer, other in zip(model, alone, strict=True):
            assert layer.weight.equal(other.weight)
