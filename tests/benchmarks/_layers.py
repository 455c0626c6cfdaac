"""Registered layers against the same layers bare: training and inference, eager and compiled."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.benchmarks._rivals import Constrain, forum
from tests.benchmarks._timing import Job, Meter, Ratio
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
    parameters = list(owner.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        call(x).sum().backward()

    return step


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
