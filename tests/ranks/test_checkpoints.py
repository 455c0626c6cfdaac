"""Distributed checkpoints: written on two ranks, read on three and by a single process."""

import copy
import warnings
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
from torch.distributed.fsdp import fully_shard

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.ranks.harness import CLOCK, Groups, on
from tests.ranks.models import (
    assert_weights,
    make,
    registered,
    sharded,
    train_with,
    weights,
    whole,
)
from tests.support.versions import RESUMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

FULL = StateDictOptions(full_state_dict=True)
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
REFUSAL = r"expected a checkpoint of softplus.*found one of exp"


@pytest.fixture(scope="module")
def folder(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    if failure := groups.failure(write, 2, folder=folder):
        pytest.fail(failure, pytrace=False)
    return folder


def write(folder: Path) -> None:
    """By a sharded registered model in the middle of its training, and by a stock one."""
    model = sharded()
    optimizer = adam(model)
    train_with(optimizer, model, split=True, steps=3)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=folder / "sharded")
    full = get_model_state_dict(model, options=FULL)
    plain = {key: whole(value) for key, value in plain_state_dict(model).items()}
    stock = sharded(with_diagonal=False)
    dcp.save({"model": stock.state_dict()}, checkpoint_id=folder / "stock")
    saved = {"full": full, "plain": plain, "weights": weights(model)}
    if dist.get_rank() == 0:
        torch.save(saved, folder / "full.pt")
    dist.barrier()


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.05)


def scrambled(map: str = "exp") -> nn.Sequential:
    model = sharded(map=map)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


@RESUMES
@on(3)
def test_training_goes_on_from_a_sharded_checkpoint(folder: Path) -> None:
    model = scrambled()
    optimizer = adam(model)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=folder / "sharded")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
    )
    assert_weights(model, torch.load(folder / "full.pt")["weights"])
    alone = registered()
    uninterrupted = adam(alone)
    train_with(uninterrupted, alone, split=False, steps=3)
    assert_weights(model, weights(alone), 1e-6)
    train_with(uninterrupted, alone, split=False, steps=3)
    train_with(optimizer, model, split=True, steps=3)
    assert_weights(model, weights(alone), 1e-6)


@pytest.mark.parametrize("options", [FULL, BROADCAST], ids=["each", "broadcast"])
@on(3)
def test_full_checkpoint_is_read(folder: Path, options: StateDictOptions) -> None:
    saved, model = torch.load(folder / "full.pt"), scrambled()
    set_model_state_dict(model, copy.copy(saved["full"]), options=options)
    assert_weights(model, saved["weights"])


@on(3)
def test_plain_checkpoint_is_read(folder: Path) -> None:
    saved, model = torch.load(folder / "full.pt"), scrambled()
    set_model_state_dict(model, copy.copy(saved["plain"]), options=FULL)
    assert_weights(model, saved["weights"], 1e-6)
    assert whole(model[0].bias).equal(saved["plain"]["0.bias"])

    model = register_negative_diagonal(make(), "*.weight")
    model.load_state_dict(saved["plain"])
    fully_shard(model)
    assert_weights(model, saved["weights"], 1e-6)


@on(3)
def test_checkpoint_of_a_stock_model_is_read(folder: Path) -> None:
    model = scrambled()
    states = {"model": plain_state_dict(model)}
    dcp.load(states, checkpoint_id=folder / "stock")
    model.load_state_dict(states["model"])
    assert_weights(model, weights(registered()), 1e-6)


@on(3)
def test_checkpoint_of_another_map_is_refused(folder: Path) -> None:
    saved, model = torch.load(folder / "full.pt"), scrambled("softplus")
    before = weights(model)
    with pytest.raises(RuntimeError, match=REFUSAL):
        set_model_state_dict(model, copy.copy(saved["full"]), options=FULL)
    assert_weights(model, before)
    states = {"model": model.state_dict()}
    dcp.load(states, checkpoint_id=folder / "sharded")
    with pytest.raises(RuntimeError, match=REFUSAL):
        model.load_state_dict(states["model"])


def test_full_checkpoint_is_read_by_a_single_process(folder: Path) -> None:
    saved, model = torch.load(folder / "full.pt"), registered()
    model.load_state_dict(saved["full"])
    assert all(map(torch.equal, weights(model), saved["weights"]))
    make().load_state_dict(saved["plain"])


def test_sharded_checkpoint_is_read_by_a_single_process(folder: Path) -> None:
    expected = torch.load(folder / "full.pt")["weights"]
    for source, states_of in (("sharded", nn.Module.state_dict), ("stock", plain_state_dict)):
        model = registered(infeasible="reflect")
        states = states_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch remarks that there is no process group
            dcp.load({"model": states}, checkpoint_id=folder / source)
        model.load_state_dict(states)
        if source == "stock":
            expected = weights(registered())
        for ours, theirs in zip(weights(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@on(3)
def test_the_marks_alone_tell_of_another_map_before_anything_is_written(folder: Path) -> None:
    model = scrambled("softplus")
    before = weights(model)
    marks = {key: mark for key, mark in model.state_dict().items() if key.endswith("_extra_state")}
    dcp.load({"model": marks}, checkpoint_id=folder / "sharded")
    with pytest.raises(RuntimeError, match=REFUSAL):
        model.load_state_dict(marks, strict=False)
    assert all(map(torch.equal, weights(model), before))
