"""Compiled layers equal eager ones, in one graph, and blocks share their code."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative, diagonal_of, original_of
from tests.support.tables import LAYERS, LEADING, MAPS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COUNT = 12  # above the recompile limit
CASES = {
    **{name: (LAYERS[name], LEADING, torch.float32) for name in ("linear", "conv2d_center")},
    "lstm": (LAYERS["lstm"], LEADING, torch.float32),
    **{f"bfloat16, {name}": (LAYERS["linear"], MAPS[name], torch.bfloat16) for name in MAPS},
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
