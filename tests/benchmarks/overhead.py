"""What a negative diagonal costs, as ratios: ``python -m tests.benchmarks.overhead --help``."""

import argparse
import copy
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import ClampDiagonal, register_negative_diagonal, remove_negative_diagonal
from tests.benchmarks._measure import Job, Ratio, Table, cleared, compare, peak_bytes, tell
from tests.support.tables import BUILT_IN as MAPS

Constrain = Callable[[Tensor], Tensor]
COMPILED = "clamp, both compiled"
IN_CLONES = "In units of one `weight.clone()` of the same size."
IN_LAYERS = "In units of the bare layer, which is compiled where the registered one is."
CLAMP = "clamping after each optimizer step, all it costs"
HEAD = (
    "Measured on {date}, {cores}-core {machine} {device}, threads: {threads}, torch {torch}, "
    "float32. Medians with [lower, upper] quartile of interleaved runs; 1.00 is each table's "
    "unit.\n"
)


def forum(original: Tensor) -> Tensor:
    weight = original.clone()
    weight.diagonal().copy_(-original.diagonal().exp())
    return weight


def masked(original: Tensor) -> Tensor:
    return torch.where(_mask(len(original)), -original.exp(), original)


def embedded(original: Tensor) -> Tensor:
    diagonal = original.diagonal()
    return original + torch.diag_embed(-diagonal.exp() - diagonal)


def looped(original: Tensor) -> Tensor:
    weight = original.clone()
    for i in range(len(original)):
        weight[i, i] = -original[i, i].exp()
    return weight


def clamp_(weight: Tensor) -> None:
    """What replaces a parametrization after each optimizer step."""
    with torch.no_grad():
        weight.diagonal().clamp_(max=-1e-6)


class _Clone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor) -> Tensor:
        return original.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


FORUM = "clone, then copy to the diagonal"
LOOP = "a Python loop"
RIVALS: dict[str, Constrain] = {
    FORUM: forum,
    "`where` with an identity mask": masked,
    "`diag_embed`": embedded,
    LOOP: looped,
}
FLOOR: dict[str, Constrain] = {"an autograd function that only clones": _Clone.apply}


@lru_cache
def _mask(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool)


def peer_jobs(n: int) -> Iterator[tuple[str, Job | str]]:
    """For every peer: a matrix and its gradient through the constraint, or why there is none."""
    grad = torch.randn(n, n)
    for name, register in _TORCH.items():
        module = nn.Linear(n, n, bias=False)
        try:
            register(module)
        except ImportError:
            yield name, "not installed"
        else:
            read = lambda module=module: module.weight.backward(grad)  # noqa: E731
            yield name, Job(cleared(module.parameters(), read))
    yield "TFP on JAX, jit: TransformDiagonal (-exp)", _tfp(n)


def _geotorch(constraint: str, module: nn.Module) -> None:
    import geotorch

    getattr(geotorch, constraint)(module, "weight")


_TORCH: dict[str, Callable[[nn.Module], object]] = {
    "negdiag_param: negative diagonal (clamp)": register_negative_diagonal,
    "torch weight_norm: rows of learned length": parametrizations.weight_norm,
    "torch orthogonal: orthogonal matrix": parametrizations.orthogonal,
    "geotorch.skew: antisymmetric, hence zero diagonal": partial(_geotorch, "skew"),
    "geotorch.positive_definite: positive eigenvalues": partial(_geotorch, "positive_definite"),
}


def _tfp(n: int) -> Job | str:
    try:
        import jax
        from tensorflow_probability.substrates.jax import bijectors
    except ImportError:
        return "not installed"
    except AttributeError as error:
        # TFP reads names of JAX that later releases removed.
        return f"fails to import: {error}"
    negative = bijectors.Chain([bijectors.Scale(-1.0), bijectors.Exp()])
    constrain = bijectors.TransformDiagonal(negative).forward

    @jax.jit
    def weight_and_grad(original: object, grad: object) -> tuple[object, object]:
        weight, pullback = jax.vjp(constrain, original)
        return weight, pullback(grad)

    original, grad = (jax.random.normal(jax.random.key(seed), (n, n)) for seed in (0, 1))
    return Job(lambda: jax.block_until_ready(weight_and_grad(original, grad)))


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


class Effort(NamedTuple):
    """How much to measure."""

    seconds: float  # for each comparison, at least
    sizes: Sequence[int]
    layers: Sequence[Layer]
    compiled: Sequence[Layer]
    peers: Sequence[int]
    growth: Sequence[int]
    memory: int


LAYERS = (linear(16, 32), linear(64, 32), linear(1024, 1), linear(1024, 128), conv(64, 8))
GROWTH = (64, 256, 1024, 4096)
EFFORT = Effort(1.0, GROWTH, LAYERS, LAYERS, GROWTH[:3], GROWTH, 1024)
QUICK = Effort(0.2, GROWTH[:3], LAYERS, LAYERS[1:2], GROWTH[:2], GROWTH, 1024)


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


def registered(bare: nn.Module, **options: object) -> nn.Module:
    return register_negative_diagonal(copy.deepcopy(bare), **options)


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    # fullgraph, so that a layer that does not compile fails instead of running eagerly.
    return torch.compile(module, fullgraph=True, dynamic=False)


def train_step(owner: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Job:
    """Forward and backward, without an optimizer: its work is the same for every module."""
    return Job(cleared([x, *owner.parameters()], lambda: call(x).sum().backward()))


def train_ratios(layer: Layer, effort: Effort) -> dict[str, Ratio]:
    """A forward and a backward pass, in units of the bare layer's."""
    bare, x = layer.make(), torch.randn(layer.input_shape)
    modules = {
        "identity": constrained(bare, lambda weight: weight),
        "by hand": constrained(bare, forum),
        **{name: registered(bare, map=name) for name in MAPS},
    }
    jobs = {name: train_step(module, module, x) for name, module in modules.items()}
    ratios = compare(train_step(bare, bare, x), jobs, effort.seconds)
    if layer in effort.compiled:
        unit, job = (train_step(m, compiled(m), x) for m in (bare, modules["clamp"]))
        ratios |= compare(unit, {COMPILED: job}, effort.seconds)
    return ratios


def eval_ratios(layer: Layer, effort: Effort) -> dict[str, Ratio]:
    """A forward pass in eval mode without gradients, in units of the bare layer's."""
    bare, x = layer.make().eval(), torch.randn(layer.input_shape)
    ours, stock = registered(bare), constrained(bare, Tensor.clone)

    def inference(call: Callable[[Tensor], Tensor]) -> Job:
        return Job(lambda: call(x), torch.no_grad)

    jobs = {
        "stock in `cached()`": Job(lambda: stock(x), _cached),
        "clamp": inference(ours),
        "clamp in `cached()`": Job(lambda: ours(x), _cached),
        "clamp, `cache_in_eval`": inference(registered(bare, cache_in_eval=True)),
        "clamp, removed": inference(remove_negative_diagonal(registered(bare))),
    }
    ratios = compare(inference(bare), jobs, effort.seconds)
    if layer in effort.compiled:
        unit, job = (inference(compiled(module)) for module in (bare, ours))
        ratios |= compare(unit, {COMPILED: job}, effort.seconds)
    return ratios


@contextmanager
def _cached() -> Iterator[None]:
    with torch.no_grad(), parametrize.cached():
        yield


def layers(effort: Effort) -> list[Table]:
    """Registered layers against bare ones."""
    train = Table("A layer's train step (forward and backward)", IN_LAYERS)
    evaluation = Table("A layer in eval mode, without gradients", IN_LAYERS)
    for layer in effort.layers:
        tell(layer.name)
        train.rows[layer.name] = dict(train_ratios(layer, effort))
        evaluation.rows[layer.name] = dict(eval_ratios(layer, effort))
    return [train, evaluation]


def recurrent(effort: Effort, steps: int = 40) -> Table:
    """A model that reads its weight at every time step, in training."""
    tell("recurrent")
    table = Table(
        f"A train step of a recurrent model of {steps} time steps, Linear(64, 64), batch 32",
        "In units of the bare layer. A `cached()` block holds the forward and backward passes.",
    )
    bare, x = nn.Linear(64, 64), torch.randn(32, 64)
    modules = {"stock, clones": constrained(bare, Tensor.clone), "clamp": registered(bare)}

    def unrolled(cell: nn.Module, state: Tensor) -> Tensor:
        for _ in range(steps):
            state = torch.tanh(cell(state))
        return state

    jobs = {}
    for name, module in modules.items():
        jobs[name] = train_step(module, partial(unrolled, module), x)
        jobs[f"{name}, in `cached()`"] = Job(parametrize.cached()(jobs[name].run))
    unit = train_step(bare, partial(unrolled, bare), x)
    table.rows["forward and backward"] = dict(compare(unit, jobs, effort.seconds))
    return table


def alone(effort: Effort) -> list[Table]:
    """The parametrization by itself, beside what a user would write."""
    forward = Table("The parametrization alone, forward", IN_CLONES)
    both = Table("The parametrization alone, forward and backward", IN_CLONES)
    for n in effort.sizes:
        tell(f"alone, n={n}")
        ways = _ours() | RIVALS | FLOOR
        if n > 64:
            del ways[LOOP]
        weight, unit, passes = _passes(n, ways)
        jobs = {name: Job(partial(way, weight)) for name, way in ways.items()}
        forward.put(f"n={n}", compare(unit, jobs, effort.seconds))
        jobs = passes | {CLAMP: Job(partial(clamp_, weight))}
        both.put(f"n={n}", compare(unit, jobs, effort.seconds))
    return [forward, both]


def growth(effort: Effort) -> Table:
    """Cost in clones from small to large."""
    table = Table("Growth with n, forward and backward", IN_CLONES)
    ways = {"negdiag_param, clamp": MAPS["clamp"](), FORUM: forum, **FLOOR}
    for n in effort.growth:
        tell(f"growth, n={n}")
        _, unit, passes = _passes(n, ways)
        table.put(f"n={n}", compare(unit, passes, effort.seconds))
    return table


def _ours() -> dict[str, Constrain]:
    ours = {name: make() for name, make in MAPS.items()}
    ours |= {f"clamp, dominance={k!r}": ClampDiagonal(dominance=k) for k in ("rows", "columns")}
    return {f"negdiag_param, {name}": way for name, way in ours.items()}


def _passes(n: int, ways: dict[str, Constrain]) -> tuple[Tensor, Job, dict[str, Job]]:
    """A weight, the clone that is the unit, and each way forward and backward."""
    weight, grad = torch.randn(n, n, requires_grad=True), torch.randn(n, n)

    def passed(way: Constrain) -> Job:
        return Job(cleared([weight], lambda: way(weight).backward(grad)))

    passes = {name: passed(way) for name, way in ways.items()}
    return weight, Job(weight.detach().clone), passes


def peers(effort: Effort) -> Table:
    """What other constraints cost on the same job."""
    table = Table("Other constraints on an n x n weight, forward and backward", IN_CLONES)
    for n in effort.peers:
        unit = Job(torch.randn(n, n).clone)
        for name, job in peer_jobs(n):
            tell(f"{name}, n={n}")
            is_there = isinstance(job, Job)
            found = compare(unit, {name: job}, effort.seconds) if is_there else {name: job}
            table.put(f"n={n}", found)
    return table


def memory(effort: Effort) -> Table:
    """The peak of a train step."""
    n = effort.memory
    tell(f"memory, n={n}")
    table = Table(
        f"Peak memory of a train step beyond weight and gradient, Linear({n}, {n}), batch 1",
        "In units of the weight's size.",
    )
    bare, x = nn.Linear(n, n), torch.randn(1, n, requires_grad=True)
    ways = _ours() | RIVALS
    del ways[LOOP]
    modules = {"bare": bare} | {name: constrained(bare, way) for name, way in ways.items()}
    for name, module in modules.items():
        peak = peak_bytes(train_step(module, module, x).run)
        # The profiler does not see that the gradient of the step before goes.
        table.put("extra", {name: peak / (4 * n * n) - 1})
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    torch.set_default_device(options.device)
    effort = QUICK if options.quick else EFFORT
    tables = [
        *alone(effort),
        *layers(effort),
        recurrent(effort),
        peers(effort),
        growth(effort),
        memory(effort),
    ]
    here = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cores": os.cpu_count(),
        "machine": platform.machine().replace("x86_64", "x86-64"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.json:
        report = here | {"tables": [asdict(table) for table in tables]}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join([HEAD.format(**here), *(table.markdown() for table in tables)]))


if __name__ == "__main__":
    main()
