"""Blocks that are compiled one by one share their code, as those of the bare model do."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from negdiag_param import register_negative_diagonal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COUNT = 12  # above the recompile limit


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


def registered(**options: object) -> Block:
    return register_negative_diagonal(Block(), "*.weight", **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"map": "softplus", "margin": 0.1}, {"map": "sign_flip"}, {"cache_in_eval": True}],
    ids=str,
)
def test_as_many_frames_as_without_us(options):
    bare = frames([Block() for _ in range(COUNT)])
    assert frames([registered(**options) for _ in range(COUNT)]) == bare


def test_copies_too():
    bare = frames([Block() for _ in range(COUNT)])
    block = registered()
    assert frames([copy.deepcopy(block) for _ in range(COUNT)]) == bare
