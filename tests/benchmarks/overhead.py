"""What a negative diagonal costs, as ratios: ``python -m tests.benchmarks.overhead --help``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.benchmarks import _cuda, _layers
from tests.benchmarks._layers import Layer, conv, linear
from tests.benchmarks._memory import peak_bytes
from tests.benchmarks._peers import peer_jobs
from tests.benchmarks._report import Report, Table
from tests.benchmarks._rivals import FLOOR, FORUM, LOOP, MAPS, RIVALS, Constrain, clamp_, forum
from tests.benchmarks._timing import Job, Meter

IN_CLONES = "In units of one `weight.clone()` of the same size."
CLAMP = "clamping after each optimizer step, all it costs"


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    seconds: float = 1.0  # for each comparison, at least
    sizes: Sequence[int] = (64, 256, 1024, 4096)
    loop_up_to: int = 64
    layers: Sequence[Layer] = (
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


QUICK_LAYERS = (linear(64, 1), linear(64, 32), linear(1024, 128), conv(64, 8))
QUICK = Effort(
    seconds=0.2,
    sizes=(64, 256, 1024),
    layers=QUICK_LAYERS,
    compiled=QUICK_LAYERS[1:2],
    peers=(64, 256),
    growth=(64, 256, 1024, 4096),
    large=(4096,),
)


@dataclass
class Bench:
    """Measures section by section."""

    device: torch.device
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        self.meter = Meter(self.device, self.effort.seconds)

    def run(self) -> Report:
        """Everything that the device allows."""
        sections = [self.alone, self.layers, self.peers, self.growth, self.memory]
        if self.device.type == "cuda":
            sections += [self.kernels, self.bandwidth, self.captured]
        return Report.of(self.device, [table for section in sections for table in section()])

    def alone(self) -> list[Table]:
        """The parametrization by itself, beside what a user would write."""
        forward = Table("The parametrization alone, forward", IN_CLONES)
        both = Table("The parametrization alone, forward and backward", IN_CLONES)
        ways = self._ours()
        for n in self.effort.sizes:
            tell(f"alone, n={n}")
            weight, grad = self._pair(n)
            fits = ways | RIVALS | FLOOR
            if n > self.effort.loop_up_to:
                del fits[LOOP]
            unit = Job(weight.detach().clone)
            jobs = {name: Job(partial(way, weight)) for name, way in fits.items()}
            forward.put(f"n={n}", self.meter.compare(unit, jobs))
            jobs = {name: Job(_pass(way, weight, grad)) for name, way in fits.items()}
            jobs[CLAMP] = Job(partial(clamp_, weight))
            both.put(f"n={n}", self.meter.compare(unit, jobs))
        return [forward, both]

    def layers(self) -> list[Table]:
        """Registered layers against bare ones."""
        unit = "In units of the bare layer, which is compiled where the registered one is."
        train = Table("A layer's train step (forward and backward)", unit)
        evaluation = Table("A layer in eval mode, without gradients", unit)
        for layer in self.effort.layers:
            compiled = self.effort.compiled is None or layer in self.effort.compiled
            tell(f"{layer.name}{', also compiled' if compiled else ''}")
            for table, ratios in (
                (train, _layers.train_ratios),
                (evaluation, _layers.eval_ratios),
            ):
                table.rows[layer.name] = dict(ratios(layer, self.meter, compiled))
        return [train, evaluation]

    def peers(self) -> list[Table]:
        """What other constraints cost on the same job."""
        table = Table("Other constraints on an n x n weight, forward and backward", IN_CLONES)
        for n in self.effort.peers:
            unit = Job(torch.randn(n, n, device=self.device).clone)
            for name, job in peer_jobs(n, self.device):
                tell(f"{name}, n={n}")
                result = (
                    job if isinstance(job, str) else self.meter.compare(unit, {name: job})[name]
                )
                table.put(f"n={n}", {name: result})
        return [table]

    def growth(self) -> list[Table]:
        """Cost in clones from small to large."""
        table = Table("Growth with n, forward and backward", IN_CLONES)
        ways: dict[str, Constrain] = {"negdiag_param, exp": MAPS["exp"](), FORUM: forum}
        ways |= FLOOR
        for n in self.effort.growth:
            tell(f"growth, n={n}")
            weight, grad = self._pair(n)
            jobs = {name: Job(_pass(way, weight, grad)) for name, way in ways.items()}
            table.put(f"n={n}", self.meter.compare(Job(weight.detach().clone), jobs))
        return [table]

    def memory(self) -> list[Table]:
        """The peak of a train step."""
        n = self.effort.memory
        tell(f"memory, n={n}")
        table = Table(
            f"Peak memory of a train step beyond weight and gradient, Linear({n}, {n}), batch 1",
            "In units of the weight's size.",
        )
        ways = self._ours() | RIVALS
        del ways[LOOP]
        modules: dict[str, nn.Module] = {"bare": nn.Linear(n, n)}
        modules |= {name: _layers.constrained(n, way) for name, way in ways.items()}
        x = torch.randn(1, n, device=self.device, requires_grad=True)
        for name, module in modules.items():
            step = _and_cleared(module.to(self.device), x)
            table.put("extra", {name: peak_bytes(step, self.device) / (4 * n * n) - 1})
        return [table]

    def kernels(self) -> list[Table]:
        """Launches per pass."""
        n = self.effort.sizes[-1]
        table = Table(f"Kernels launched, n={n}", "Kernels, copies and fills.")
        weight, grad = self._pair(n)
        for name, make in MAPS.items():
            tell(f"kernels, {name}")
            torch.compiler.reset()
            eager = make()
            for mode, way in (("eager", eager), ("compiled", torch.compile(eager, fullgraph=True))):
                forward = _cuda.kernels(partial(way, weight))
                both = _cuda.kernels(_pass(way, weight, grad))
                cells = {f"{mode}, forward": forward, f"{mode}, backward": both - forward}
                table.rows.setdefault(name, {}).update(cells)
        return [table]

    def bandwidth(self) -> list[Table]:
        """How close to copying once each way."""
        table = Table(
            "Share of the copy bandwidth", "1.00 is one clone forward, two forward and backward."
        )
        for n in self.effort.large:
            tell(f"bandwidth, n={n}")
            weight, grad = self._pair(n)
            for name, make in MAPS.items():
                way = make()
                jobs = {
                    "forward": Job(partial(way, weight)),
                    "both": Job(_pass(way, weight, grad)),
                }
                ratios = self.meter.compare(Job(weight.detach().clone), jobs)
                shares = {
                    f"n={n}, forward": 1 / ratios["forward"].median,
                    f"n={n}, forward and backward": 2 / ratios["both"].median,
                }
                table.rows.setdefault(name, {}).update(shares)
        return [table]

    def captured(self) -> list[Table]:
        """A whole train step as a CUDA graph."""
        table = Table(
            "A compiled train step with SGD, captured in a CUDA graph",
            "In units of the bare layer's.",
        )
        for n in self.effort.sizes:
            tell(f"CUDA graph, n={n}")
            torch.compiler.reset()
            x = torch.randn(128, n, device=self.device)
            bare = nn.Linear(n, n, device=self.device)
            ours = register_negative_diagonal(nn.Linear(n, n, device=self.device))
            unit, job = (_cuda.captured_step(layer, x) for layer in (bare, ours))
            table.put(f"n={n}", self.meter.compare(unit, {"exp": job}))
        return [table]

    def _ours(self) -> dict[str, Constrain]:
        return {f"negdiag_param, {name}": make() for name, make in MAPS.items()}

    def _pair(self, n: int) -> tuple[Tensor, Tensor]:
        weight, grad = (torch.randn(n, n, device=self.device) for _ in range(2))
        return weight.requires_grad_(), grad


def _pass(way: Constrain, weight: Tensor, grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        weight.grad = None
        way(weight).backward(grad)  # type: ignore[no-untyped-call]

    return run


def _and_cleared(module: nn.Module, x: Tensor) -> Callable[[], None]:
    step = _layers.train_step(module, module, x)

    def run() -> None:
        step()
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    return run


def tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


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
    report = Bench(torch.device(options.device), QUICK if options.quick else Effort()).run()
    if options.json:
        options.json.write_text(json.dumps(report.json(), indent=2) + "\n")
    print(report.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
