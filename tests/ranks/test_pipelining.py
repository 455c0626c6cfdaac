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
from torch.distributed.pipelining.schedules import _PipelineSchedule

from negdiag_param import negative_diagonals, plain_state_dict, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import N, batch
from tests.support.versions import PIPELINES

pytestmark = [PIPELINES, pytest.mark.slow, pytest.mark.timeout(CLOCK)]

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


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def staged(model: nn.Sequential, schedule: type, register: str) -> tuple[nn.ModuleDict, object]:
    """This rank's stages, and what runs them."""
    places = PLACES[schedule]
    mine, stages = places[dist.get_rank()], sum(map(len, places))
    if register == "before":
        register_negative_diagonal(model, "*.weight")
    parts = nn.ModuleDict({str(i): model[i] for i in mine})
    built = [PipelineStage(part, int(i), stages, torch.device("cpu")) for i, part in parts.items()]
    if register == "after":
        register_negative_diagonal(parts, "*.weight")
    single = len(built) == 1
    return parts, schedule(built[0] if single else built, n_microbatches=4, loss_fn=loss)


def train(parts: nn.ModuleDict, schedule: _PipelineSchedule, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(parts.parameters(), lr=0.05)
    x, y = batch()
    last = str(max(max(places) for places in PLACES[type(schedule)]))
    for _ in range(steps):
        optimizer.zero_grad()
        schedule.step(*((x,) if "0" in parts else ()), **({"target": y} if last in parts else {}))
        optimizer.step()


def trained_alone(stages: int, steps: int = 3) -> nn.Sequential:
    model = register_negative_diagonal(make(stages), "*.weight")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("schedule", "register"),
    [*((schedule, "before") for schedule in PLACES), (Schedule1F1B, "after")],
    ids=lambda value: getattr(value, "__name__", value),
)
@on(2)
def test_trains_as_one_process(schedule: type, register: str) -> None:
    stages = sum(map(len, PLACES[schedule]))
    parts, runner = staged(make(stages), schedule, register)
    train(parts, runner)
    alone = trained_alone(stages)
    for i, part in parts.items():
        expected = plain_state_dict(alone[int(i)])
        for key, value in plain_state_dict(part).items():
            torch.testing.assert_close(value, expected[key])
    assert all((diagonal < 0).all() for _, diagonal in negative_diagonals(parts))


@on(2)
def test_communicates_as_the_plain_model() -> None:
    sent = []
    for register in ("never", "before"):
        parts, runner = staged(make(2), Schedule1F1B, register)
        with mock.patch.object(dist, "batch_isend_irecv", wraps=dist.batch_isend_irecv) as calls:
            train(parts, runner, steps=2)
        operations = [operation for call in calls.call_args_list for operation in call.args[0]]
        sent.append([(o.op.__name__, o.tensor.shape, o.tensor.dtype) for o in operations])
    assert sent[0] == sent[1] != []


@on(2)
def test_checkpoints_of_stages_are_read_by_one_process_and_back(tmp_path: Path) -> None:
    parts, runner = staged(make(2), Schedule1F1B, "before")
    train(parts, runner)
    dcp.save({"model": parts.state_dict()}, checkpoint_id=tmp_path)
    whole = register_negative_diagonal(make(2), "*.weight")
    for model in (whole, staged(make(2), Schedule1F1B, "before")[0]):
        state = model.state_dict()
        dcp.load({"model": state}, checkpoint_id=tmp_path)
        model.load_state_dict(state)
    torch.testing.assert_close(plain_state_dict(whole), plain_state_dict(trained_alone(2)))
    for i, part in parts.items():
        torch.testing.assert_close(plain_state_dict(part), plain_state_dict(whole[int(i)]))
