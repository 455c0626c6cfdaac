"""Checks of distributed checkpoints: written on some ranks, read on other numbers of them."""

import contextlib
import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.distributed.ranks import Check
from tests.distributed.training import batch, make, registered, sharded, weights, whole

FULL = StateDictOptions(full_state_dict=True)


def checkpoint_is_written(folder: Path) -> None:
    """By a sharded registered model in the middle of its training, and by a stock one."""
    model = sharded()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    steps(model, optimizer)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=folder / "sharded")
    full = get_model_state_dict(model, options=FULL)
    plain = {key: whole(value) for key, value in plain_state_dict(model).items()}
    stock = sharded(with_diagonal=False)
    dcp.save({"model": stock.state_dict()}, checkpoint_id=folder / "stock")
    saved = {"full": full, "plain": plain, "weights": weights(model)}
    if dist.get_rank() == 0:
        torch.save(saved, folder / "full.pt")
        steps(alone := registered(), torch.optim.Adam(alone.parameters(), lr=0.05))
        torch.save(weights(alone), folder / "expected.pt")
    dist.barrier()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    """The same steps on any number of ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    x, y = (part.chunk(ranks)[rank] for part in batch())
    if not any(isinstance(p.data, torch.distributed.tensor.DTensor) for p in model.parameters()):
        x, y = batch()
    for _ in range(count):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def assert_weights(model: nn.Module, expected: list[Tensor], tolerance: float = 0) -> None:
    for ours, theirs in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert ours.diagonal().max() < 0


def sharded_checkpoint_is_read(folder: Path) -> None:
    model = scrambled()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=folder / "sharded")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
    )
    saved = torch.load(folder / "full.pt")
    assert_weights(model, saved["weights"])
    assert_weights(model, torch.load(folder / "expected.pt"), 1e-6)
    steps(model, optimizer)
    alone = registered()
    steps(alone, torch.optim.Adam(alone.parameters(), lr=0.05), 6)
    assert_weights(model, weights(alone), 1e-6)


def scrambled(map: str = "exp") -> nn.Sequential:
    model = sharded(map=map)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


def full_checkpoint_is_read(folder: Path) -> None:
    saved = torch.load(folder / "full.pt")
    for options in (FULL, StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)):
        model = scrambled()
        set_model_state_dict(model, copy.copy(saved["full"]), options=options)
        assert_weights(model, saved["weights"])


def plain_checkpoint_is_read(folder: Path) -> None:
    saved = torch.load(folder / "full.pt")
    model = scrambled()
    set_model_state_dict(model, copy.copy(saved["plain"]), options=FULL)
    assert_weights(model, saved["weights"], 1e-6)
    assert whole(model[0].bias).equal(saved["plain"]["0.bias"])

    model = scrambled()
    states = {"model": plain_state_dict(model)}
    dcp.load(states, checkpoint_id=folder / "stock")
    model.load_state_dict(states["model"])
    assert_weights(model, weights(registered()), 1e-6)

    model = register_negative_diagonal(make(), "*.weight")
    model.load_state_dict(saved["plain"])
    fully_shard(model)
    assert_weights(model, saved["weights"], 1e-6)


def plain_checkpoint_of_the_first_rank_is_refused(folder: Path) -> None:
    first = dist.get_rank() == 0
    plain = torch.load(folder / "full.pt")["plain"] if first else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    refusal = (
        contextlib.nullcontext() if first else pytest.raises(RuntimeError, match="Missing key")
    )
    with refusal:
        set_model_state_dict(scrambled(), plain, options=options)


def checkpoint_of_another_map_is_refused(folder: Path) -> None:
    saved = torch.load(folder / "full.pt")
    model = scrambled("softplus")
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"expected a checkpoint of softplus.*found one of exp"):
        set_model_state_dict(model, copy.copy(saved["full"]), options=FULL)
    assert_weights(model, before)
    states = {"model": model.state_dict()}
    dcp.load(states, checkpoint_id=folder / "sharded")
    with pytest.raises(RuntimeError, match=r"expected a checkpoint of softplus.*found one of exp"):
        model.load_state_dict(states["model"])


WRITERS: Iterable[Check] = [checkpoint_is_written]
READERS: Iterable[Check] = [
    sharded_checkpoint_is_read,
    full_checkpoint_is_read,
    plain_checkpoint_is_read,
    plain_checkpoint_of_the_first_rank_is_refused,
    checkpoint_of_another_map_is_refused,
]
