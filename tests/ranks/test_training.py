"""Training, as one process trains: under every parallelism, compiled, cached, in low precision."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.futures import Future
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal, register_negative_diagonal
from tests.ranks.asserts import assert_trained_alike, layers, weights
from tests.ranks.harness import on
from tests.ranks.kinds import KINDS, bare, build, every_kind, size, split_of
from tests.ranks.models import EVEN, N, make, output, registered, shard, train
from tests.support.modules import Half
from tests.support.tables import BUILT_IN
from tests.support.versions import COMPILED_SHARDS


@every_kind()
@on()
def test_trains_as_one_process(kind: str) -> None:
    for name in BUILT_IN if kind in {"ddp", "fsdp2", "tp"} else ("clamp",):
        alone, model = registered(name, size(kind)), build(kind, map=name)
        train(alone, split=False)
        train(model, split=split_of(kind))
        assert_trained_alike(model, alone)
    if kind == "fsdp2_tp":  # tensor parallelism and FSDP2 both cut the rows of the first layer
        assert "_StridedShard" in repr(model[0].weight.placements)
        assert model[2].weight.placements == (Shard(0), Shard(1))


@on(2)
def test_the_bare_class_trains_under_tensor_parallelism_as_on_one_process() -> None:
    def register(model: nn.Sequential) -> nn.Sequential:
        for layer in (model[0], model[2]):
            diagonal = NegExpDiagonal(infeasible="reflect")
            parametrize.register_parametrization(layer, "weight", diagonal)
        return model

    alone, model = register(make(EVEN)), KINDS["tp"].wrap(make(EVEN), register)
    for m in (alone, model):
        train(m, split=False)
    assert_trained_alike(model, alone)


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
    assert all(w.diagonal().max() < 0 for w in weights(model))


@on(2)
def test_starts_from_meta() -> None:
    with torch.device("meta"):
        model = registered()
    shard(model).to_empty(device="cpu")
    for layer in layers(model):
        layer.reset_parameters()
    train(model, split=True)
    assert all(w.diagonal().max() < 0 for w in weights(model))


@every_kind("ddp")
@on()
def test_communicates_as_the_plain_model(kind: str) -> None:
    counts = []
    for model in (bare(kind), build(kind)):
        train(model, split=split_of(kind), steps=1)
        with CommDebugMode() as debug:
            train(model, split=split_of(kind), steps=1)
        counts.append(dict(debug.get_comm_counts()))
    assert counts[0] == counts[1] != {}


@on(2)
def test_replicas_communicate_as_those_of_the_plain_model() -> None:
    """What a step reduces, bucket by bucket; DDP's collectives are below what counts others."""
    sent: list[list[torch.Size]] = []

    def note(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[Tensor]:
        sent[-1].append(bucket.buffer().shape)
        return allreduce_hook(group, bucket)

    for replicas in (bare("ddp"), build("ddp")):
        sent.append([])
        replicas.register_comm_hook(dist.group.WORLD, note)
        train(replicas, split=True, steps=2)
    assert sent[0] == sent[1] != []


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


@pytest.mark.parametrize("cached", [contextlib.nullcontext, parametrize.cached])
@on(2)
def test_gathered_weights_are_never_cached(
    cached: type[contextlib.AbstractContextManager],
) -> None:
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
    alone, model = registered("clamp", EVEN), build("tp")
    train(alone, split=False)
    train(torch.compile(model, fullgraph=True, backend="aot_eager"), split=False)
    assert_trained_alike(model, alone)


@pytest.mark.parametrize("ours", [True, False])
@on(2)
def test_fsdp1_fails_where_any_parametrization_is_compiled_anew_after_a_backward_pass(
    ours: bool,
) -> None:
    torch._dynamo.reset()
    layer = nn.Linear(N, N)
    if ours:
        register_negative_diagonal(layer)
    else:
        parametrize.register_parametrization(layer, "weight", Half())
    layer.compile(backend="eager")
    model = KINDS["fsdp1"].wrap(nn.Sequential(layer), lambda bare: bare)
    train(model, split=True, steps=2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="attempting to assign a gradient"):
        model(torch.ones(2, N))
