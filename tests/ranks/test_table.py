"""README's table of parallelisms: every cell that says "works" is a test here or beside this."""

import copy
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
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrize

from negdiag_param import negative_diagonals, plain_state_dict, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.kinds import FSDP1, KINDS, build, every_kind, split_of
from tests.ranks.models import EVEN, assert_communicates_as_without, batch, make, train, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK), pytest.mark.filterwarnings("ignore")]


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return whole(model(batch(EVEN)[0]))


@every_kind()
@on()
def test_trains_as_one_process(kind: str) -> None:
    alone = register_negative_diagonal(make(EVEN), "*.weight")
    model = build(kind)
    train(alone, split=False)
    train(model, split=split_of(kind))
    torch.testing.assert_close(output(model), output(alone))


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
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), whole(theirs))  # an output would compile anew


@every_kind()
@on()
def test_distributed_checkpoints(kind: str, tmp_path: Path) -> None:
    source = build(kind)
    train(source, split=split_of(kind), steps=2)
    dcp.save({"model": get_model_state_dict(source)}, checkpoint_id=tmp_path)
    target = build(kind, seed=1)
    state = {"model": get_model_state_dict(target)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(target, state["model"])
    torch.testing.assert_close(output(target), output(source))


@every_kind()
@on()
def test_plain_checkpoints_both_ways(kind: str) -> None:
    source = build(kind)
    train(source, split=split_of(kind), steps=2)
    plain = {key: whole(value) for key, value in plain_state_dict(source).items()}
    stock = make(EVEN)
    bare = {key.removeprefix("module."): value for key, value in plain.items()}
    stock.load_state_dict(bare, strict=True)
    torch.testing.assert_close(output(stock), output(source))
    if kind not in FSDP1:
        target = build(kind, seed=1)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(getattr(target, "module", target), copy.copy(bare), options=options)
        torch.testing.assert_close(output(target), output(source))
    if kind == "ddp":
        target = build(kind, seed=2)
        target.load_state_dict(plain, strict=True)
        torch.testing.assert_close(output(target), output(source))


@every_kind()
@on()
def test_diagonals_are_read_and_penalised(kind: str) -> None:
    model = build(kind)
    if kind in FSDP1:
        with FullyShardedDataParallel.summon_full_params(model):
            assert all((whole(d) < 0).all() for _, d in negative_diagonals(model))
        return
    sum(d.square().sum() for _, d in negative_diagonals(model)).backward()
    for layer in layers(model):
        assert whole(layer.parametrizations.weight.original.grad).diagonal().count_nonzero() == EVEN


@every_kind()
@on()
def test_a_checkpoint_of_another_map_is_refused(kind: str) -> None:
    state = get_model_state_dict(build(kind, map="softplus"))
    target = build(kind)
    before = output(target)
    with pytest.raises(
        RuntimeError, match=r"expected a checkpoint of clamp.*found one of softplus"
    ):
        set_model_state_dict(target, state)
    assert torch.equal(output(target), before)


@every_kind("ddp")
@on()
def test_communicates_as_the_plain_model(kind: str) -> None:
    def model(with_diagonal: bool) -> nn.Module:
        return build(kind) if with_diagonal else KINDS[kind].wrap(make(EVEN), lambda bare: bare)

    assert_communicates_as_without(model, split_of(kind))
