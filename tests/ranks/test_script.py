"""The script that README shows, run as README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import negdiag_param
from tests.ranks.harness import CLOCK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

PACKAGE = Path(negdiag_param.__file__).parent.parent


def test_script_trains_and_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    first = torchrun(2, tmp_path / "checkpoint")
    second = torchrun(1, tmp_path / "checkpoint", "--resume")
    losses, largest = zip(*(map(float, found) for found in (first, second)), strict=True)
    assert losses[1] < losses[0]
    assert max(largest) <= -0.1


def torchrun(ranks: int, *arguments: object) -> tuple[str, str]:
    script = Path(__file__).with_name("train_fsdp2.py")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", script]
    process = subprocess.Popen(
        [sys.executable, *map(str, [*command, *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PACKAGE),  # the package under test, wherever another is installed
        },
    )
    try:
        # A collective that never comes ends with gloo's own timeout, half an hour.
        output, errors = process.communicate()
    except BaseException:
        process.terminate()  # and so the ranks
        process.communicate()
        raise
    assert process.returncode == 0, errors
    (found,) = re.findall(r"loss (\S+), largest diagonal entry (\S+)", output)
    return found
