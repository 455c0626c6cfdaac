"""Checkpoints: of one kind read by another, on other numbers of ranks, plain ones, wrong ones."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from negdiag_param import plain_state_dict
from tests.ranks.asserts import assert_exactly, assert_trained_alike, plain
from tests.ranks.harness import Groups, on
from tests.ranks.kinds import FSDP1, KINDS, bare, build, every_kind, kinds, size, split_of
from tests.ranks.models import EVEN, N, alone, make, output, registered, scrambled, train
from tests.support.versions import UNEVEN

FULL = StateDictOptions(full_state_dict=True)
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
SIX = size("fsdp2_tp")  # whose shards are uneven
REFUSAL = r"expected a checkpoint of clamp.*found one of softplus"


@pytest.fixture(scope="module")
def folder(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    if failure := groups.failure(write, 4, folder=folder):
        pytest.fail(failure, pytrace=False)
    return folder


def write(folder: Path) -> None:
    """By FSDP2 over tensor parallelism, in the middle of its training, and not registered."""
    trained(build("fsdp2_tp"), "fsdp2_tp", folder / "registered")
    dcp.save({"model": bare("fsdp2_tp").state_dict()}, checkpoint_id=folder / "stock")


def trained(model: nn.Module, kind: str, to: Path, since: Path | None = None) -> None:
    """Two steps, since a checkpoint if there is one."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def states() -> dict[str, object]:
        return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))

    if since:
        state = states()
        dcp.load(state, checkpoint_id=since)
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    train(model, split=kind and split_of(kind), steps=2, optimizer=optimizer)
    dcp.save(states(), checkpoint_id=to)


@UNEVEN
@pytest.mark.parametrize(
    ("kind", "ranks"), [*((name, kind.ranks) for name, kind in KINDS.items()), ("fsdp2", 3)]
)
@on()
def test_training_goes_on_under_every_other_kind(kind: str, folder: Path, tmp_path: Path) -> None:
    model = build(kind, seed=1, n=SIX)
    trained(model, kind, to=tmp_path, since=folder / "registered")
    assert_trained_alike(model, alone(SIX, 4))
    again = build(kind, seed=2, n=SIX)
    state = {"model": get_model_state_dict(again)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(again, state["model"])
    assert_exactly(plain(again), plain(model))


def read_stock(model: nn.Module, folder: Path) -> None:
    state = plain_state_dict(scrambled(model))
    dcp.load({"model": state}, checkpoint_id=folder / "stock")
    model.load_state_dict(state)
    assert_trained_alike(model, registered("clamp", SIX))


@UNEVEN
@pytest.mark.parametrize(("kind", "ranks"), [("fsdp2", 3), ("tp", 2), ("fsdp2_tp", 4)])
@on()
def test_a_checkpoint_of_a_stock_model_is_read(kind: str, folder: Path) -> None:
    read_stock(build(kind, n=SIX, infeasible="reflect"), folder)


@UNEVEN
@pytest.mark.filterwarnings("ignore")  # PyTorch remarks that there is no process group
def test_a_single_process_reads_both(folder: Path, tmp_path: Path) -> None:
    model = registered(n=SIX)
    trained(model, "", to=tmp_path, since=folder / "registered")
    assert_trained_alike(model, alone(SIX, 4))
    read_stock(registered("clamp", SIX, infeasible="reflect"), folder)


@every_kind()
@on()
def test_full_checkpoints_both_ways(kind: str) -> None:
    """Plain ones and registered ones, which every rank has read or the first alone."""
    n = EVEN if "tp" in kind else N  # PyTorch distributes nothing over uneven strided shards
    source = build(kind, n=n)
    train(source, split=split_of(kind), steps=2)
    values = plain(source)
    stock = make(n)
    stock.load_state_dict(values)
    torch.testing.assert_close(output(stock), output(source))
    if kind == "ddp":
        target = build(kind, seed=2, n=n)
        target.load_state_dict(plain_state_dict(source))
        assert_exactly(plain(target), values)
    if kind in FSDP1:
        return
    full = get_model_state_dict(source, options=FULL)
    full = {key.removeprefix("module."): value for key, value in full.items()}
    everybodys = [full]
    dist.broadcast_object_list(everybodys)
    one = registered(n=n)
    one.load_state_dict(everybodys[0])
    assert_exactly(plain(one), values)
    for state in (values, everybodys[0]):
        for options in (FULL, BROADCAST, dataclasses.replace(BROADCAST, strict=False)):
            target = build(kind, seed=1, n=n)
            given = copy.copy(state) if options is FULL or dist.get_rank() == 0 else {}
            set_model_state_dict(getattr(target, "module", target), given, options=options)
            assert_exactly(plain(target), values)


@pytest.mark.filterwarnings("ignore:FSDP.state_dict_type")
@kinds(*FSDP1)
@on()
def test_fsdp1_gives_no_plain_state_of_shards(kind: str) -> None:
    """``set_model_state_dict`` leaves this setting behind where it fails."""
    model = build(kind)
    expected = plain(model)
    sharded = FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
    message = r"0\..*: expected a whole tensor.*FULL_STATE_DICT"
    with sharded, pytest.raises(ValueError, match=message):
        plain_state_dict(model)
    assert_exactly(plain(model), expected)


@every_kind()
@on()
def test_a_checkpoint_of_another_map_is_refused(kind: str, tmp_path: Path) -> None:
    source, target = build(kind, map="softplus"), build(kind)
    state, before = get_model_state_dict(source), output(target)
    with pytest.raises(RuntimeError, match=REFUSAL):
        set_model_state_dict(target, state)
    assert_exactly(output(target), before)
    if kind in FSDP1:
        return
    dcp.save({"model": source.state_dict()}, checkpoint_id=tmp_path)
    # The marks alone tell of it before anything is written, as README has it.
    marks = {key: mark for key, mark in target.state_dict().items() if key.endswith("_extra_state")}
    dcp.load({"model": marks}, checkpoint_id=tmp_path)
    with pytest.raises(RuntimeError, match=REFUSAL):
        target.load_state_dict(marks, strict=False)
    assert_exactly(output(target), before)
    state = target.state_dict()
    dcp.load({"model": state}, checkpoint_id=tmp_path)
    with pytest.raises(RuntimeError, match=REFUSAL):
        target.load_state_dict(state)
