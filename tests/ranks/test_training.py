"""Training, as one process trains: under every parallelism, compiled, cached, in low precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.futures import Future
from torch.nn.utils import parametrize

from negdiag_param import ClampDiagonal, NegExpDiagonal, register_negative_diagonal
from negdiag_param._maths.dominance import DOMINANCE
from tests.ranks.asserts import (
    Collectives,
    assert_exactly,
    assert_trained_alike,
    layers,
    monitored,
    weights,
    whole,
)
from tests.ranks.harness import on
from tests.ranks.kinds import FSDP1, KINDS, bare, build, every_kind, kinds, size, split_of
from tests.ranks.models import EVEN, N, alone, make, output, registered, shard, share, train
from tests.support.modules import Half
from tests.support.tables import BUILT_IN
from tests.support.versions import COMPILED_SHARDS, SHARDS


@every_kind()
@on()
def test_trains_as_one_process(kind: str) -> None:
    for name in BUILT_IN if kind in {"ddp", "fsdp2", "tp"} else ("clamp",):
        model = build(kind, map=name)
        train(model, split=split_of(kind), steps=3)
        assert_trained_alike(model, alone(size(kind), 3, name))
    if kind == "fsdp2_tp":  # tensor parallelism and FSDP2 both cut the rows of the first layer
        assert "_StridedShard" in repr(model[0].weight.placements)
        assert model[2].weight.placements == (Shard(0), Shard(1))


@pytest.mark.parametrize("dominance", DOMINANCE)
@kinds("ddp", "fsdp2")
@on()
def test_a_dominating_diagonal_trains_as_on_one_process(kind: str, dominance: str) -> None:
    options = {"map": "softplus", "dominance": dominance}
    model = build(kind, **options)
    train(model, split=True, steps=3)
    torch.testing.assert_close(monitored(model), monitored(alone(N, 3, **options)))


@on(2)
def test_the_bare_class_trains_under_tensor_parallelism_as_on_one_process() -> None:
    model = KINDS["tp"].wrap(make(EVEN), lambda model: model)
    for layer in layers(model):
        diagonal = NegExpDiagonal(infeasible="reflect")
        parametrize.register_parametrization(layer, "weight", diagonal)
    train(model, split=False, steps=3)
    assert_trained_alike(model, alone(EVEN, 3, "exp"))


@pytest.mark.parametrize("map", BUILT_IN)
@on(2)
def test_trains_in_mixed_precision(map: str) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    seen = []
    model = shard(registered(map), mp_policy=policy)
    model[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    before = train(model, split=True, steps=1)
    after = train(model, split=True, steps=7)
    assert len(seen) == 8
    assert all(w.dtype == torch.bfloat16 and w.detach().diagonal().max() < 0 for w in seen)
    assert after < before


@on(2)
def test_starts_from_meta() -> None:
    with torch.device("meta"):
        model = registered("exp")
    shard(model).to_empty(device="cpu")
    for layer in layers(model):
        layer.reset_parameters()
    train(model, split=True)
    assert all(d.max() < 0 for d in monitored(model).values())


@every_kind()
@on()
def test_communicates_as_the_plain_model(kind: str) -> None:
    """What DDP reduces, bucket by bucket; the collectives of the others."""
    sent = []

    def note(buckets: list[torch.Size], bucket: dist.GradBucket) -> Future[Tensor]:
        buckets.append(bucket.buffer().shape)
        return allreduce_hook(dist.group.WORLD, bucket)

    for model in (bare(kind), build(kind)):
        buckets: list[torch.Size] = []
        if kind == "ddp":
            model.register_comm_hook(buckets, note)
        train(model, split=split_of(kind), steps=1)
        with CommDebugMode() as debug:
            train(model, split=split_of(kind), steps=1)
        sent.append([buckets, dict(debug.get_comm_counts())])
    assert sent[0] == sent[1]
    assert any(sent[0])


@every_kind()
@on()
def test_caches_are_never_stale(kind: str) -> None:
    model = build(kind, cache_in_eval=True)
    seen = []
    for block in (torch.no_grad, parametrize.cached):
        for _ in range(2):
            model.eval()
            with torch.no_grad(), block():
                seen.append(output(model))
                assert torch.equal(output(model), seen[-1])
            train(model.train(), split=split_of(kind), steps=1)
    assert not any(map(torch.equal, seen, seen[1:]))


@pytest.mark.parametrize("cached", [nullcontext, parametrize.cached])
@on(2)
def test_gathered_weights_are_never_cached(cached: Callable[[], AbstractContextManager]) -> None:
    """They lie in the same place, under the same version, with other values."""
    model = register_negative_diagonal(make(256), "*.weight", cache_in_eval=True).eval()
    shard(model)
    x, seen = torch.randn(2, 256), []
    with torch.no_grad(), cached():
        for _step in range(6):
            assert isinstance(model[2].weight, DTensor)
            seen.append(model(x))
            model[2].parametrizations.weight.original.sub_(0.25)
    assert not any(map(torch.equal, seen, seen[1:]))


@every_kind("hsdp", "tp")
@on()
def test_compiles_layer_by_layer(kind: str) -> None:
    """One layer, on the rank whose shards begin farthest inside: others would take as long again.

    HSDP is FSDP2 here; "tp" compiles as a whole.
    """
    torch._dynamo.reset()
    model, expected = build(kind), build(kind)
    if dist.get_rank() == dist.get_world_size() - 1:
        layers(model)[0].compile(backend="aot_eager")
    for m in (model, expected):
        train(m, split=split_of(kind), steps=2)
    assert_trained_alike(model, expected)  # an output would compile anew


@COMPILED_SHARDS
@on(2)
def test_tensor_parallelism_compiles_in_one_graph() -> None:
    model = build("tp")
    train(torch.compile(model, fullgraph=True, backend="aot_eager"), split=False, steps=3)
    assert_trained_alike(model, alone(EVEN, 3))


@pytest.mark.parametrize("parametrization", [ClampDiagonal(infeasible="reflect"), Half()])
@on(2)
def test_fsdp1_fails_where_a_layer_is_compiled_anew_after_backward(
    parametrization: nn.Module,
) -> None:
    torch._dynamo.reset()
    layer = nn.Linear(N, N)
    parametrize.register_parametrization(layer, "weight", parametrization)
    layer.compile(backend="eager")
    model = KINDS["fsdp1"].wrap(nn.Sequential(layer), lambda bare: bare)
    train(model, split=True, steps=2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="attempting to assign a gradient"):
        model(torch.ones(2, N))


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
@SHARDS
@every_kind(*FSDP1)
@on()
def test_trains_as_a_plain_layer_that_is_clamped_after_each_step(
    kind: str, way: str, margin: float
) -> None:
    plain, model = feasible(), wrapped(kind, margin)
    ours, theirs = list(model.parameters()), list(plain.parameters())
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
        pull(plain, target, split=False)
        for optimizer in others if in_backward else [*optimizers, *others]:
            step(optimizer)
        went_beyond.append(clamp(plain, margin))
        assert_exactly([whole(mine) for mine in ours], [other.detach() for other in theirs])
    assert {*went_beyond} == {True, False}
    assert_exactly(states(optimizers), states(others))


@kinds(*FSDP1)
@on()
def test_flat_pieces_are_left_alone_and_the_weight_is_clamped(kind: str) -> None:
    plain, model = feasible(), wrapped(kind, 0.25)
    for m, split in ((model, True), (plain, False)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for target in UP_AND_DOWN[:4]:
            optimizer.zero_grad()
            pull(m, target, split, squared=False)
            optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        for i in (0, 2):
            assert model[i].parametrizations.weight.original.equal(plain[i].weight)
        assert clamp(plain, 0.25)
        assert_exactly(weights(model), weights(plain))
