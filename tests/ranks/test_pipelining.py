"""A model whose layers lie on several ranks, each of them a stage of a pipeline or two."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.ranks.asserts import assert_exactly, assert_originals_feasible
from tests.ranks.harness import on
from tests.ranks.models import N, batch, scrambled, train
from tests.support.versions import PIPELINES

pytestmark = PIPELINES

# Which stages each of two ranks holds.
PLACES = {
    ScheduleGPipe: ((0,), (1,)),
    Schedule1F1B: ((0,), (1,)),
    ScheduleInterleaved1F1B: ((0, 2), (1, 3)),
    ScheduleInterleavedZeroBubble: ((0, 2), (1, 3)),
    ScheduleZBVZeroBubble: ((0, 3), (1, 2)),
}


def make(stages: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Sequential(nn.Linear(N, N), nn.Tanh()) for _ in range(stages)))


def trained(schedule: type, register: str, steps: int = 3) -> nn.ModuleDict:
    """This rank's stages."""
    places = PLACES[schedule]
    model = make(sum(map(len, places)))
    if register == "before":
        register_negative_diagonal(model, "*.weight")
    parts = nn.ModuleDict({str(i): model[i] for i in places[dist.get_rank()]})
    stages = [PipelineStage(p, int(i), len(model), torch.device("cpu")) for i, p in parts.items()]
    if register == "after":
        register_negative_diagonal(parts, "*.weight")
    runner = schedule(
        stages[0] if len(stages) == 1 else stages, n_microbatches=4, loss_fn=nn.MSELoss()
    )
    optimizer = torch.optim.Adam(parts.parameters(), lr=0.05)
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        target = {"target": y} if str(len(model) - 1) in parts else {}
        runner.step(*((x,) if "0" in parts else ()), **target)
        optimizer.step()
    return parts


def assert_alike(parts: nn.ModuleDict, alone: nn.Sequential) -> None:
    for i, part in parts.items():
        torch.testing.assert_close(plain_state_dict(part), plain_state_dict(alone[int(i)]))


@pytest.mark.parametrize(
    ("schedule", "register"),
    [*((schedule, "before") for schedule in PLACES), (Schedule1F1B, "after")],
    ids=lambda value: getattr(value, "__name__", value),
)
@on(2)
def test_trains_as_one_process(schedule: type, register: str) -> None:
    parts = trained(schedule, register)
    assert_originals_feasible(parts)
    alone = register_negative_diagonal(make(sum(map(len, PLACES[schedule]))), "*.weight")
    train(alone, split=False)
    assert_alike(parts, alone)


@on(2)
def test_sends_as_the_plain_model() -> None:
    sent = []
    for register in ("never", "before"):
        with mock.patch.object(dist, "batch_isend_irecv", wraps=dist.batch_isend_irecv) as calls:
            trained(Schedule1F1B, register, steps=2)
        operations = [operation for call in calls.call_args_list for operation in call.args[0]]
        sent.append([(o.op.__name__, o.tensor.shape, o.tensor.dtype) for o in operations])
    assert sent[0] == sent[1] != []


@on(2)
def test_checkpoints_of_stages_are_read_by_one_process_and_back(tmp_path: Path) -> None:
    parts = trained(Schedule1F1B, "before")
    dcp.save({"model": parts.state_dict()}, checkpoint_id=tmp_path)
    whole, others = register_negative_diagonal(make(2), "*.weight"), trained(Schedule1F1B, "before")
    for model in (whole, others):
        state = scrambled(model).state_dict()
        dcp.load({"model": state}, checkpoint_id=tmp_path)
        model.load_state_dict(state)
    assert_alike(parts, whole)
    assert_exactly(plain_state_dict(others), plain_state_dict(parts))
