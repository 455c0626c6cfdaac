"""What a negative diagonal costs, as ratios: ``python -m tests.benchmarks.overhead --help``."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from tests.benchmarks import _sections
from tests.benchmarks._report import Table
from tests.benchmarks._sections import Layer, conv, linear
from tests.benchmarks._timing import Meter


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    seconds: float = 1.0  # for each comparison, at least
    sizes: Sequence[int] = (64, 256, 1024, 4096)
    loop_up_to: int = 64
    layers: Sequence[Layer] = (
        linear(16, 32),
        linear(64, 1),
        linear(64, 32),
        linear(1024, 1),
        linear(1024, 128),
        linear(2048, 1),
        linear(2048, 256),
        conv(64, 8),
    )
    compiled: Sequence[Layer] | None = None  # None: all of them
    peers: Sequence[int] = (64, 256, 1024)
    growth: Sequence[int] = tuple(2**k for k in range(6, 14))
    memory: int = 1024
    large: Sequence[int] = (4096, 8192)


QUICK_LAYERS = (linear(16, 32), linear(64, 32), linear(1024, 1), linear(1024, 128), conv(64, 8))
QUICK = Effort(
    seconds=0.2,
    sizes=(64, 256, 1024),
    layers=QUICK_LAYERS,
    compiled=QUICK_LAYERS[1:2],
    peers=(64, 256),
    growth=(64, 256, 1024, 4096),
    large=(4096,),
)


HEAD = (
    "Measured on {date}, {machine}, torch {torch_version}, float32. Medians with [lower, upper] "
    "quartile of interleaved runs; 1.00 is each table's unit."
)


def measure(device: torch.device, effort: Effort) -> list[Table]:
    """Everything that the device allows."""
    meter = Meter(device, effort.seconds)
    compiled = effort.layers if effort.compiled is None else effort.compiled
    tables = [
        *_sections.alone(meter, effort.sizes, effort.loop_up_to),
        *_sections.layers(meter, effort.layers, compiled),
        *_sections.recurrent(meter),
        *_sections.peers(meter, effort.peers),
        *_sections.growth(meter, effort.growth),
        *_sections.memory(device, effort.memory),
    ]
    if device.type == "cuda":
        tables += [
            *_sections.kernels(device, effort.sizes[-1]),
            *_sections.bandwidth(meter, effort.large),
            *_sections.captured(meter, effort.sizes),
        ]
    return tables


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores, threads = os.cpu_count(), torch.get_num_threads()
    architecture = platform.machine().replace("x86_64", "x86-64")
    return f"{cores}-core {architecture} CPU" + (f", threads: {threads}" * (threads != cores))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line; the exit code is 2 where the device is missing."""
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("overhead: error: --device cuda: no CUDA device is available", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    tables = measure(device, QUICK if options.quick else Effort())
    today = datetime.now(timezone.utc).date().isoformat()
    run = {"date": today, "machine": machine(device), "torch_version": torch.__version__}
    if options.json:
        report = run | {"tables": [asdict(table) for table in tables]}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join([HEAD.format(**run), "", *(table.markdown() for table in tables)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
