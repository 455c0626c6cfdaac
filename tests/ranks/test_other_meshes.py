"""A checkpoint of FSDP2 over tensor parallelism, two by two, read by every other kind."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh

from negdiag_param import register_negative_diagonal
from tests.ranks.harness import CLOCK, Groups, on
from tests.ranks.kinds import KINDS, build, split_of
from tests.ranks.models import EVEN, assert_trained_alike, make, train_with, whole
from tests.support.versions import RESUMES

pytestmark = [
    RESUMES,
    pytest.mark.slow,
    pytest.mark.timeout(CLOCK),
    pytest.mark.filterwarnings("ignore"),
]

READERS = [(name, kind.ranks) for name, kind in KINDS.items()]


@pytest.fixture(scope="module")
def folder(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    if failure := groups.failure(write, 4, folder=folder):
        pytest.fail(failure, pytrace=False)
    return folder


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.05)


def write(folder: Path) -> None:
    model = build("fsdp2_tp")
    optimizer = adam(model)
    train_with(optimizer, model, split=split_of("fsdp2_tp"), steps=2)
    dcp.save(states(model, optimizer), checkpoint_id=folder)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def resumed(model: nn.Module, folder: Path, split: bool | DeviceMesh) -> nn.Module:
    """Trained on from the checkpoint, for as long as the checkpoint had been trained."""
    optimizer = adam(model)
    state = states(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    train_with(optimizer, model, split=split, steps=2)
    return model


def uninterrupted() -> nn.Sequential:
    model = register_negative_diagonal(make(EVEN), "*.weight")
    train_with(adam(model), model, split=False, steps=4)
    return model


@pytest.mark.parametrize(("kind", "ranks"), READERS)
@on()
def test_training_goes_on(kind: str, folder: Path) -> None:
    model = resumed(build(kind, seed=1), folder, split_of(kind))
    x = torch.eye(EVEN)
    torch.testing.assert_close(whole(model(x)), uninterrupted()(x))


def test_training_goes_on_in_a_single_process(folder: Path) -> None:
    model = register_negative_diagonal(make(EVEN), "*.weight", infeasible="reflect")
    assert_trained_alike(resumed(model, folder, split=False), uninterrupted())
