"""What a negative diagonal costs, as ratios: ``python -m tests.benchmarks.overhead --help``."""

import argparse
import copy
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import ClampDiagonal, register_negative_diagonal, remove_negative_diagonal
from tests.benchmarks import _measure
from tests.benchmarks._measure import Job, Meter, Ratio, Table, cleared, tell
from tests.benchmarks._rivals import FLOOR, FORUM, LOOP, RIVALS, Constrain, clamp_, forum, peer_jobs
from tests.support.tables import BUILT_IN as MAPS

COMPILED = "clamp, both compiled"


class Layer(NamedTuple):
    """A layer and the shape of an input for it."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


def linear(n: int, batch: int) -> Layer:
    return Layer(f"Linear({n}, {n}), batch {batch}", lambda: nn.Linear(n, n), (batch, n))


def conv(channels: int, batch: int, size: int = 16) -> Layer:
    return Layer(
        f"Conv2d({channels}, {channels}, 3), batch {batch}",
        lambda: nn.Conv2d(channels, channels, 3, padding=1),
        (batch, channels, size, size),
    )


class Way(nn.Module):
    """A function as a parametrization."""

    def __init__(self, constrain: Constrain) -> None:
        super().__init__()
        self.constrain = constrain

    def forward(self, original: Tensor) -> Tensor:
        return self.constrain(original)


def constrained(bare: nn.Module, constrain: Constrain) -> nn.Module:
    """A copy, with the stock way to register any function."""
    module = copy.deepcopy(bare)
    return parametrize.register_parametrization(module, "weight", Way(constrain))


def train_ratios(layer: Layer, meter: Meter, compiled: bool) -> dict[str, Ratio]:
    """A forward and a backward pass, in units of the bare layer's."""
    bare, x = _made(layer, meter.device)
    modules = {
        "identity": constrained(bare, lambda weight: weight),
        "by hand": constrained(bare, forum),
        **{name: _registered(bare, map=name) for name in MAPS},
    }
    jobs = {name: Job(train_step(module, module, x)) for name, module in modules.items()}
    ratios = meter.compare(Job(train_step(bare, bare, x)), jobs)
    if compiled:
        torch.compiler.reset()
        pair = (bare, modules["clamp"])
        unit, job = (Job(train_step(module, _compiled(module), x)) for module in pair)
        ratios |= meter.compare(unit, {COMPILED: job})
    return ratios


def eval_ratios(layer: Layer, meter: Meter, compiled: bool) -> dict[str, Ratio]:
    """A forward pass in eval mode without gradients, in units of the bare layer's."""
    bare, x = _made(layer, meter.device)
    bare.eval()
    ours, stock = _registered(bare), constrained(bare, Tensor.clone)
    jobs = {
        "stock in `cached()`": Job(lambda: stock(x), _cached),
        "clamp": _inference(ours, x),
        "clamp in `cached()`": Job(lambda: ours(x), _cached),
        "clamp, `cache_in_eval`": _inference(_registered(bare, cache_in_eval=True), x),
        "clamp, removed": _inference(remove_negative_diagonal(_registered(bare)), x),
    }
    ratios = meter.compare(_inference(bare, x), jobs)
    if compiled:
        torch.compiler.reset()
        unit, job = (_inference(_compiled(module), x) for module in (bare, ours))
        ratios |= meter.compare(unit, {COMPILED: job})
    return ratios


def recurrent_ratios(meter: Meter, steps: int) -> dict[str, Ratio]:
    """A forward and a backward pass through ``steps`` reads of one weight."""
    bare, x = _made(linear(64, 32), meter.device)
    modules = {"stock, clones": constrained(bare, Tensor.clone), "clamp": _registered(bare)}

    def unrolled(cell: nn.Module, state: Tensor) -> Tensor:
        for _ in range(steps):
            state = torch.tanh(cell(state))
        return state

    jobs = {}
    for name, module in modules.items():
        step = train_step(module, partial(unrolled, module), x)
        jobs[name] = Job(step)
        jobs[f"{name}, in `cached()`"] = Job(parametrize.cached()(step))
    return meter.compare(Job(train_step(bare, partial(unrolled, bare), x)), jobs)


def train_step(owner: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward, without an optimizer: its work is the same for every module."""
    return cleared(owner.parameters(), lambda: call(x).sum().backward())


def _inference(call: Callable[[Tensor], Tensor], x: Tensor) -> Job:
    return Job(lambda: call(x), torch.no_grad)


@contextmanager
def _cached() -> Iterator[None]:
    with torch.no_grad(), parametrize.cached():
        yield


def _made(layer: Layer, device: torch.device) -> tuple[nn.Module, Tensor]:
    return layer.make().to(device), torch.randn(layer.input_shape, device=device)


def _registered(bare: nn.Module, **options: object) -> nn.Module:
    return register_negative_diagonal(copy.deepcopy(bare), **options)


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    # fullgraph, so that a layer that does not compile fails instead of running eagerly.
    return torch.compile(module, fullgraph=True, dynamic=False)


IN_CLONES = "In units of one `weight.clone()` of the same size."
CLAMP = "clamping after each optimizer step, all it costs"


def alone(meter: Meter, sizes: Sequence[int], loop_up_to: int) -> list[Table]:
    """The parametrization by itself, beside what a user would write."""
    forward = Table("The parametrization alone, forward", IN_CLONES)
    both = Table("The parametrization alone, forward and backward", IN_CLONES)
    ways = _ours()
    for n in sizes:
        tell(f"alone, n={n}")
        weight, grad = _pair(n, meter.device)
        fits = ways | RIVALS | FLOOR
        if n > loop_up_to:
            del fits[LOOP]
        unit = Job(weight.detach().clone)
        jobs = {name: Job(partial(way, weight)) for name, way in fits.items()}
        forward.put(f"n={n}", meter.compare(unit, jobs))
        jobs = {name: Job(_pass(way, weight, grad)) for name, way in fits.items()}
        jobs[CLAMP] = Job(partial(clamp_, weight))
        both.put(f"n={n}", meter.compare(unit, jobs))
    return [forward, both]


def layers(meter: Meter, every: Sequence[Layer], also_compiled: Sequence[Layer]) -> list[Table]:
    """Registered layers against bare ones."""
    unit = "In units of the bare layer, which is compiled where the registered one is."
    train = Table("A layer's train step (forward and backward)", unit)
    evaluation = Table("A layer in eval mode, without gradients", unit)
    for layer in every:
        compiled = layer in also_compiled
        tell(f"{layer.name}{', also compiled' if compiled else ''}")
        train.rows[layer.name] = dict(train_ratios(layer, meter, compiled))
        evaluation.rows[layer.name] = dict(eval_ratios(layer, meter, compiled))
    return [train, evaluation]


def recurrent(meter: Meter, steps: int = 40) -> list[Table]:
    """A model that reads its weight at every time step, in training."""
    table = Table(
        f"A train step of a recurrent model of {steps} time steps, Linear(64, 64), batch 32",
        "In units of the bare layer. A `cached()` block holds the forward and backward passes.",
    )
    tell("recurrent")
    table.rows["forward and backward"] = dict(recurrent_ratios(meter, steps))
    return [table]


def peers(meter: Meter, sizes: Sequence[int]) -> list[Table]:
    """What other constraints cost on the same job."""
    table = Table("Other constraints on an n x n weight, forward and backward", IN_CLONES)
    for n in sizes:
        unit = Job(torch.randn(n, n, device=meter.device).clone)
        for name, job in peer_jobs(n, meter.device):
            tell(f"{name}, n={n}")
            result = job if isinstance(job, str) else meter.compare(unit, {name: job})[name]
            table.put(f"n={n}", {name: result})
    return [table]


def growth(meter: Meter, sizes: Sequence[int]) -> list[Table]:
    """Cost in clones from small to large."""
    table = Table("Growth with n, forward and backward", IN_CLONES)
    ways: dict[str, Constrain] = {"negdiag_param, clamp": MAPS["clamp"](), FORUM: forum}
    ways |= FLOOR
    for n in sizes:
        tell(f"growth, n={n}")
        weight, grad = _pair(n, meter.device)
        jobs = {name: Job(_pass(way, weight, grad)) for name, way in ways.items()}
        table.put(f"n={n}", meter.compare(Job(weight.detach().clone), jobs))
    return [table]


def memory(device: torch.device, n: int) -> list[Table]:
    """The peak of a train step."""
    tell(f"memory, n={n}")
    table = Table(
        f"Peak memory of a train step beyond weight and gradient, Linear({n}, {n}), batch 1",
        "In units of the weight's size.",
    )
    ways = _ours() | RIVALS
    del ways[LOOP]
    bare = nn.Linear(n, n)
    modules = {name: constrained(bare, way) for name, way in ways.items()}
    x = torch.randn(1, n, device=device, requires_grad=True)
    for name, module in ({"bare": bare} | modules).items():
        step = _and_cleared(module.to(device), x)
        table.put("extra", {name: _measure.peak_bytes(step, device) / (4 * n * n) - 1})
    return [table]


def kernels(device: torch.device, n: int) -> list[Table]:
    """Launches per pass."""
    table = Table(f"Kernels launched, n={n}", "Kernels, copies and fills.")
    weight, grad = _pair(n, device)
    for name, make in MAPS.items():
        tell(f"kernels, {name}")
        torch.compiler.reset()
        eager = make()
        for mode, way in (("eager", eager), ("compiled", torch.compile(eager, fullgraph=True))):
            forward = _measure.kernels(partial(way, weight))
            both = _measure.kernels(_pass(way, weight, grad))
            table.put(f"{mode}, forward", {name: forward})
            table.put(f"{mode}, backward", {name: both - forward})
    return [table]


def bandwidth(meter: Meter, sizes: Sequence[int]) -> list[Table]:
    """How close to copying once each way."""
    unit = "1.00 is one clone forward, two forward and backward."
    table = Table("Share of the copy bandwidth", unit)
    for n in sizes:
        tell(f"bandwidth, n={n}")
        weight, grad = _pair(n, meter.device)
        for name, way in {name: make() for name, make in MAPS.items()}.items():
            jobs = {1: Job(partial(way, weight)), 2: Job(_pass(way, weight, grad))}
            ratios = meter.compare(Job(weight.detach().clone), jobs)
            for copies, label in ((1, "forward"), (2, "forward and backward")):
                table.put(f"n={n}, {label}", {name: copies / ratios[copies].median})
    return [table]


def captured(meter: Meter, sizes: Sequence[int]) -> list[Table]:
    """A whole train step as a CUDA graph."""
    title = "A compiled train step with SGD, captured in a CUDA graph"
    table = Table(title, "In units of the bare layer's.")
    for n in sizes:
        tell(f"CUDA graph, n={n}")
        torch.compiler.reset()
        x = torch.randn(128, n, device=meter.device)
        bare = nn.Linear(n, n, device=meter.device)
        ours = register_negative_diagonal(nn.Linear(n, n, device=meter.device))
        unit, job = (_measure.captured_step(layer, x) for layer in (bare, ours))
        table.put(f"n={n}", meter.compare(unit, {"clamp": job}))
    return [table]


def _ours() -> dict[str, Constrain]:
    ours = {name: make() for name, make in MAPS.items()}
    ours |= {f"clamp, dominance={k!r}": ClampDiagonal(dominance=k) for k in ("rows", "columns")}
    return {f"negdiag_param, {name}": way for name, way in ours.items()}


def _pair(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    weight, grad = (torch.randn(n, n, device=device) for _ in range(2))
    return weight.requires_grad_(), grad


def _pass(way: Constrain, weight: Tensor, grad: Tensor) -> Callable[[], None]:
    return cleared([weight], lambda: way(weight).backward(grad))


def _and_cleared(module: nn.Module, x: Tensor) -> Callable[[], None]:
    step = train_step(module, module, x)

    def run() -> None:
        step()
        for tensor in (x, *module.parameters()):
            tensor.grad = None

    return run


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
        *alone(meter, effort.sizes, effort.loop_up_to),
        *layers(meter, effort.layers, compiled),
        *recurrent(meter),
        *peers(meter, effort.peers),
        *growth(meter, effort.growth),
        *memory(device, effort.memory),
    ]
    if device.type == "cuda":
        tables += [
            *kernels(device, effort.sizes[-1]),
            *bandwidth(meter, effort.large),
            *captured(meter, effort.sizes),
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
