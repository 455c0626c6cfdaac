"""README's table of parallelisms: every cell that says "works" is a test here or beside this."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from negdiag_param import negative_diagonals, plain_state_dict, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    EVEN,
    PLAN,
    assert_communicates_as_without,
    batch,
    make,
    shard,
    train,
    whole,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK), pytest.mark.filterwarnings("ignore")]


def mesh(*names: str) -> DeviceMesh:
    """All ranks in one dimension, or two by two."""
    shape = (dist.get_world_size(),) if len(names) == 1 else (2, dist.get_world_size() // 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def ddp(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return DistributedDataParallel(register(model))


def fsdp2(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return shard(register(model), mesh=mesh("dp"))


def hsdp(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return shard(register(model), mesh=mesh("replicate", "dp"))


def tp(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return register(parallelize_module(model, mesh("tp"), PLAN))


def fsdp2_tp(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    both = mesh("dp", "tp")
    return shard(register(parallelize_module(model, both["tp"], PLAN)), mesh=both["dp"])


def fsdp1(model: nn.Sequential, register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return FullyShardedDataParallel(
        register(model), use_orig_params=True, device_id=torch.device("cpu")
    )


KINDS = {f.__name__: f for f in (ddp, fsdp2, hsdp, tp, fsdp2_tp, fsdp1)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, seed: int = 0, **options: object) -> nn.Module:
    model = make(EVEN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * seed)
    return KINDS[kind](model, lambda m: register_negative_diagonal(m, "*.weight", **options))


def split_of(kind: str) -> bool | DeviceMesh:
    """How the batch is shared out: not at all among ranks that share one replica."""
    if kind == "fsdp2_tp":
        return mesh("dp", "tp")["dp"]
    return kind != "tp"


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return whole(model(batch(EVEN)[0]))


@every_kind
@on(4)
def test_trains_as_one_process(kind: str) -> None:
    alone = register_negative_diagonal(make(EVEN), "*.weight")
    model = build(kind)
    train(alone, split=False, steps=5)
    train(model, split=split_of(kind), steps=5)
    torch.testing.assert_close(output(model), output(alone))


@every_kind
@on(4)
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fsdp1"])
@on(4)
def test_compiles_layer_by_layer(kind: str) -> None:
    def compiled(model: nn.Module) -> nn.Module:
        for layer in layers(model):
            layer.compile(backend="aot_eager")
        return model

    torch._dynamo.reset()
    model, expected = compiled(build(kind)), build(kind)
    for m in (model, expected):
        train(m, split=split_of(kind), steps=3)
    torch.testing.assert_close(output(model), output(expected))


@every_kind
@on(4)
def test_distributed_checkpoints(kind: str, tmp_path: Path) -> None:
    source = build(kind)
    train(source, split=split_of(kind), steps=2)
    dcp.save({"model": get_model_state_dict(source)}, checkpoint_id=tmp_path)
    target = build(kind, seed=1)
    state = {"model": get_model_state_dict(target)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(target, state["model"])
    torch.testing.assert_close(output(target), output(source))


@every_kind
@on(4)
def test_plain_checkpoints_both_ways(kind: str) -> None:
    source = build(kind)
    train(source, split=split_of(kind), steps=2)
    plain = {key: whole(value) for key, value in plain_state_dict(source).items()}
    stock = make(EVEN)
    bare = {key.removeprefix("module."): value for key, value in plain.items()}
    stock.load_state_dict(bare, strict=True)
    torch.testing.assert_close(output(stock), output(source))
    if kind != "fsdp1":
        target = build(kind, seed=1)
        if kind == "ddp":
            target.load_state_dict(plain, strict=True)
        else:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(target, copy.copy(bare), options=options)
        torch.testing.assert_close(output(target), output(source))


@every_kind
@on(4)
def test_diagonals_are_read_and_penalised(kind: str) -> None:
    model = build(kind)
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(model):
            assert all((whole(d) < 0).all() for _, d in negative_diagonals(model))
        return
    sum(d.square().sum() for _, d in negative_diagonals(model)).backward()
    for layer in layers(model):
        assert whole(layer.parametrizations.weight.original.grad).diagonal().count_nonzero() == EVEN


@every_kind
@on(4)
def test_a_checkpoint_of_another_map_is_refused(kind: str) -> None:
    state = get_model_state_dict(build(kind, map="softplus"))
    target = build(kind)
    before = output(target)
    with pytest.raises(RuntimeError, match=r"expected a checkpoint of exp.*found one of softplus"):
        set_model_state_dict(target, state)
    assert torch.equal(output(target), before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ddp"])
@on(4)
def test_communicates_as_the_plain_model(kind: str) -> None:
    def model(with_diagonal: bool) -> nn.Module:
        return build(kind) if with_diagonal else KINDS[kind](make(EVEN), lambda bare: bare)

    assert_communicates_as_without(model, split_of(kind))
