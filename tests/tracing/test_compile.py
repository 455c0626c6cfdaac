"""Compiled layers equal eager ones, in one graph, over the whole range; blocks share their code."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative, diagonal_of, original_of
from tests.support.modules import TwiceSquareDiagonal
from tests.support.tables import LAYERS, LEADING, MAPS, VARIANTS, extremes, smallest
from tests.support.versions import NEEDS_COMPILER

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COUNT = 12  # above the recompile limit
NOT_READY = ("subclass", "transform")  # the others are below
CASES = {
    **{name: (LAYERS[name], LEADING, torch.float32) for name in ("linear", "conv2d_center")},
    "a subclass of a ready class": (LAYERS["linear"], TwiceSquareDiagonal, torch.float32),
    "lstm": (LAYERS["lstm"], LEADING, torch.float32),
    **{f"bfloat16, {name}": (LAYERS["linear"], MAPS[name], torch.bfloat16) for name in NOT_READY},
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_layers_equal_eager_ones_without_graph_breaks(case):
    layer, kind, dtype = CASES[case]
    torch.manual_seed(0)
    module = layer.make().to(dtype)
    register_negative_diagonal(module, layer.tensor_name, map=kind, **layer.options)
    torch._dynamo.reset()
    recurrent = case == "lstm"  # which breaks the graph without us too
    options = {"fullgraph": not recurrent, "dynamic": None if recurrent else True}
    compiled = torch.compile(module, backend="aot_eager", **options)
    results = []
    for run in (module, compiled):
        module.zero_grad()
        output = layer.run(run)
        output.float().square().sum().backward()
        results.append([output, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*results)
    with torch.no_grad():
        original_of(layer, module).add_(2.0)
    torch.testing.assert_close(layer.run(compiled), layer.run(module))
    assert_negative(diagonal_of(layer, module))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


def frames(blocks: list[nn.Module]) -> int:
    torch._dynamo.reset()
    counter = CompileCounter()
    for block in blocks:
        block.compile(backend=counter, fullgraph=True)
    x = torch.randn(2, 8)
    for _ in range(2):
        for block in blocks:
            x = block(x)
    x.sum().backward()
    with torch.no_grad():
        for block in blocks:
            x = block(x)
    return counter.frame_count


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ({}, False),
        ({}, True),
        ({"map": "exp", "margin": 0.1}, False),
        ({"cache_in_eval": True}, False),
    ],
    ids=str,
)
def test_blocks_compiled_one_by_one_share_their_code_as_bare_ones_do(options, copied):
    blocks = [register_negative_diagonal(Block(), "*.weight", **options) for _ in range(COUNT)]
    if copied:
        blocks = [copy.deepcopy(blocks[0]) for _ in range(COUNT)]
    assert frames(blocks) == frames([Block() for _ in range(COUNT)])


ULPS = 4
VALUES = [
    (name, margin, dtype)
    for name in VARIANTS
    for margin in (0.0, 0.7)
    for dtype in (torch.float32, torch.bfloat16)
]
UPSTREAMS = (1.0, -1.0, 1e30, torch.finfo(torch.float32).max / 1024, 2.0**-126)


def originals(dtype: torch.dtype) -> Tensor:
    x = torch.linspace(-100, 90, 4000, dtype=torch.float64)
    near = torch.tensor([-20.0, -17.0, -1e-3, 0.0, 1e-3, 15.0, 40.0, 88.0, 89.5])
    return torch.cat([x.to(dtype), near.to(dtype), extremes(dtype)])


def assert_close_in_ulps(found: Tensor, expected: Tensor) -> None:
    error = (found.double() - expected.double()).abs()
    # Near the smallest subnormal a few ulps are a few of those, times a beta of 10.
    tiny = 10 * smallest(found.dtype)
    allowed = ULPS * (torch.finfo(found.dtype).eps * expected.double().abs() + tiny)
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), (originals(found.dtype)[worst], found[worst], expected[worst])


@pytest.fixture(scope="module")
def results():
    """Eager and compiled, the values and the gradients of every case: one compilation for all."""
    torch._dynamo.reset()
    parametrizations = [VARIANTS[name](margin, dims=()) for name, margin, _ in VALUES]

    def every(*originals: Tensor) -> list[Tensor]:
        return [p(x) for p, x in zip(parametrizations, originals, strict=True)]

    leaves = [originals(dtype).requires_grad_() for _, _, dtype in VALUES]
    found = []
    for function in (every, torch.compile(every, fullgraph=True)):
        gradients = []
        for size in UPSTREAMS:
            outputs = function(*leaves)
            upstream = [torch.full_like(output, size) for output in outputs]
            gradients.append(torch.autograd.grad(outputs, leaves, upstream))
        values = [output.detach() for output in outputs]
        found.append(list(zip(values, zip(*gradients, strict=True), strict=True)))
    return dict(zip(VALUES, zip(*found, strict=True), strict=True))


@NEEDS_COMPILER
@pytest.mark.parametrize(("name", "margin", "dtype"), VALUES, ids=str)
def test_compiled_values_and_slopes_equal_eager_ones(results, name, margin, dtype):
    (value, gradients), (compiled_value, compiled) = results[name, margin, dtype]
    assert_close_in_ulps(compiled_value, value)
    assert_negative(compiled_value, margin)
    slope, compiled_slope = gradients[0], compiled[0]
    assert_close_in_ulps(compiled_slope, slope)
    assert (compiled_slope[slope.abs() > ULPS * smallest(dtype)] != 0).all()
    info = torch.finfo(dtype)
    for size, expected, found in zip(UPSTREAMS, gradients, compiled, strict=True):
        # The slope of exp has the roundings of an original of 88, that of a corner those of 1.
        rtol, atol = 1024 * torch.finfo(torch.float32).eps, 4 * info.eps * abs(size) + info.tiny
        torch.testing.assert_close(found, expected, rtol=max(rtol, 4 * info.eps), atol=atol)
