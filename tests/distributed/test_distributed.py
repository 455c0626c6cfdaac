"""What holds on process groups of two, three and four ranks, and in the script that we show."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from negdiag_param import plain_state_dict
from tests.distributed import checkpoints, operations, ranks, training
from tests.distributed.training import make, registered

TWO = [*training.CHECKS, *checkpoints.WRITERS]
THREE = [*operations.CHECKS, *checkpoints.READERS]
FOUR = [*operations.GRID_CHECKS, *training.GRID_CHECKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, str]:
    return ranks.run(TWO, 2, folder)


@pytest.fixture(scope="module")
def three(two: dict[str, str], folder: Path) -> dict[str, str]:
    """After the two ranks, whose checkpoints these read."""
    return ranks.run(THREE, 3, folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> dict[str, str]:
    return ranks.run(FOUR, 4, folder)


def names(checks: Iterable[ranks.Check]) -> list[str]:
    return [check.__name__ for check in checks]


@pytest.mark.parametrize("check", names(TWO))
def test_on_two_ranks(two: dict[str, str], check: str) -> None:
    assert check not in two, two[check]


@pytest.mark.parametrize("check", names(THREE))
def test_on_three_ranks(three: dict[str, str], check: str) -> None:
    assert check not in three, three[check]


@pytest.mark.parametrize("check", names(FOUR))
def test_on_a_grid_of_four_ranks(four: dict[str, str], check: str) -> None:
    assert check not in four, four[check]


def test_checkpoint_of_two_ranks_is_read_by_a_single_process(
    two: dict[str, str], folder: Path
) -> None:
    saved = torch.load(folder / "full.pt")
    for source, states_of in (("sharded", nn.Module.state_dict), ("stock", plain_state_dict)):
        model = registered(infeasible="reflect")
        states = states_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch remarks that there is no process group
            dcp.load({"model": states}, checkpoint_id=folder / source)
        model.load_state_dict(states)
        expected = saved["weights"] if source == "sharded" else training.weights(registered())
        for ours, theirs in zip(training.weights(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    model = registered()
    model.load_state_dict(saved["full"])
    assert all(map(torch.equal, training.weights(model), saved["weights"]))
    make().load_state_dict(saved["plain"])


def test_script_trains_and_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    first = torchrun(2, tmp_path / "checkpoint")
    second = torchrun(1, tmp_path / "checkpoint", "--resume")
    losses, largest = zip(*(map(float, found) for found in (first, second)), strict=True)
    assert losses[1] < losses[0]
    assert max(largest) <= -0.1


def torchrun(ranks: int, *arguments: object) -> tuple[str, str]:
    script = Path(__file__).with_name("train_fsdp2.py")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", script]
    result = subprocess.run(
        [sys.executable, *map(str, [*command, *arguments])],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    (found,) = re.findall(r"loss (\S+), largest diagonal entry (\S+)", result.stdout)
    return found


@pytest.mark.parametrize("blocked", [False, True])
def test_distributed_tensors_are_not_imported_for_those_who_have_none(blocked: bool) -> None:
    """Nor needed: they are missing where PyTorch was built without torch.distributed."""
    code = f"""
import sys
name = "torch.distributed.tensor"
if {blocked}:
    sys.modules[name] = None
from torch import nn
from negdiag_param import init_, negative_diagonals, plain_state_dict
from negdiag_param import register_negative_diagonal, remove_negative_diagonal
layer = register_negative_diagonal(nn.Linear(3, 3), cache_in_eval=True)
layer.weight.sum().backward()
layer.weight = -layer.weight.detach()
init_(layer, "weight", nn.init.zeros_)
layer.load_state_dict(plain_state_dict(layer))
assert dict(negative_diagonals(layer.eval()))["weight"].max() < 0
remove_negative_diagonal(layer)
assert sys.modules.get(name) is None
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
