"""The script that README shows, run as README says."""

import os
import re
from pathlib import Path

from torch.distributed.run import main as torchrun

from tests.ranks.forks import fork

SCRIPT = Path(__file__).with_name("train_fsdp2.py")


def test_script_trains_and_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "output"
    first = results(output, "--nproc-per-node=2", SCRIPT, checkpoint)
    second = results(output, "--nproc-per-node=3", SCRIPT, checkpoint, "--resume")
    losses, largest = zip(first, second, strict=True)
    assert losses[1] < losses[0]
    assert max(largest) <= -0.1


def results(output: Path, *arguments: object) -> list[float]:
    """What ``torchrun`` with these arguments prints: the loss and the largest diagonal entry."""
    process = fork(run, [*map(str, arguments)], output)
    try:
        # A collective that never comes ends with gloo's own timeout, half an hour.
        process.join()
    finally:
        process.terminate()  # and so the ranks
        process.join()
    assert process.exitcode == 0, output.read_text()
    (found,) = re.findall(r"loss (\S+), largest diagonal entry (\S+)", output.read_text())
    return [float(number) for number in found]


def run(arguments: list[str], output: Path) -> None:
    """The command line, except that ranks need not import PyTorch."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torchrun(["--standalone", "--run-path", "--start-method=fork", *arguments])
