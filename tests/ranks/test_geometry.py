"""Where the diagonal lies in a shard, for every shape, option and placement."""

import pytest
import torch

from tests.ranks.harness import CLOCK, on
from tests.ranks.layouts import CLASSES, along, assert_parity, layouts, mesh, shard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

# Shapes that are even, uneven, rectangular both ways and smaller than the number of ranks.
CASES: list[tuple[tuple[int, ...], dict[str, object]]] = [
    ((12, 12), {}),
    ((7, 5), {"margin": 0.5}),
    ((5, 9), {}),
    ((1, 4), {}),
    ((2, 2), {}),
    ((5, 7), {"dims": (1, 0)}),
    ((6,), {}),
    ((4, 6), {"dims": ()}),
    ((3, 5, 5), {"dims": (-2, -1)}),
    ((9, 4), {"blocks": 3}),
    ((20, 5), {"blocks": 4}),
    ((8, 1, 3), {"blocks": 8}),
    ((8, 4, 3, 3), {"blocks": 2}),
    ((6, 6, 5), {"taps": "center"}),
    ((6, 2, 3, 3), {"taps": "center", "blocks": 3}),
]


@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
@on(3, 4)
def test_shards_have_parity(shape: tuple[int, ...], options: dict[str, object]) -> None:
    where, dims = mesh(), options.get("dims") or (0, 1)
    for i, placements in enumerate(layouts(where, len(shape), dims)):
        kind = CLASSES[i % len(CLASSES)]
        assert_parity(kind(infeasible="reflect", **options), shape, where, placements)


@pytest.mark.parametrize(("margin", "dim"), [(0.0, 0), (0.7, 1)])
@on(3, 4)
def test_every_map_has_parity(margin: float, dim: int) -> None:
    where = mesh()
    for kind in CLASSES:
        parametrization = kind(margin=margin, infeasible="reflect")
        assert_parity(parametrization, (8, 6), where, along(dim, where))


@on(2)
def test_the_gradients_of_a_sum_add_up() -> None:
    where = mesh()
    for kind in CLASSES:
        alone = torch.randn(6, 6).requires_grad_()
        sharded = shard(alone, where, along(0, where)).requires_grad_()
        for _ in range(2):
            kind()(alone).sum().backward()
            kind()(sharded).to_local().sum().backward()
        assert sharded.grad.full_tensor().equal(alone.grad)
