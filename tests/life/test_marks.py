"""What wrote a checkpoint is told apart always, and survives what people do to state dicts."""

import copy
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import transforms as T

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    init_,
    plain_state_dict,
    register_negative_diagonal,
)
from tests.support.modules import LearnedScale, OwnSquareDiagonal
from tests.support.tables import MAPS, rows

MARK = "parametrizations.weight.0._extra_state"


def negated(*parts):
    return T.ComposeTransform([*parts, T.AffineTransform(0.0, -1.0)])


class Scaled(NegativeDiagonal):
    """A user's map with an argument of its own."""

    def __init__(self, scale: float, **options: object) -> None:
        super().__init__(**options)
        self.scale = scale

    def map(self, x):
        return -(x / self.scale).exp()

    def inverse(self, d):
        return self.scale * (-d).log()


def powers(n):
    """Many transforms in one another, which print as a very long text."""
    inner = [T.AffineTransform(0.0, 1.0) for _ in range(30)]
    return negated(T.ComposeTransform(inner), T.ExpTransform(), T.PowerTransform(n))


def scaled(*size: float) -> T.Transform:
    return negated(T.ExpTransform(), T.AffineTransform(0.0, torch.tensor(size)))


PAIRS = {
    "scale": [negated(T.SoftplusTransform(), T.AffineTransform(0.0, by)) for by in (1.0, 2.0)],
    "shift": [negated(T.AffineTransform(by, 1.0), T.ExpTransform()) for by in (0.0, 0.5)],
    "power": [negated(T.ExpTransform(), T.PowerTransform(by)) for by in (1.0, 1.01)],
    "tensors": (scaled(1.0), scaled(3.0)),
    "entry by entry": (scaled(1.0, 2.0, 3.0), scaled(3.0, 2.0, 1.0)),
    "long": (powers(1.0), powers(2.0)),
    "argument": (Scaled(1.0), Scaled(2.0)),
    "margin": (NegExpDiagonal(0.1), NegExpDiagonal(0.2)),
    "class": (OwnSquareDiagonal(), Scaled(1.0)),
    "name": [type(name, (OwnSquareDiagonal,), {})() for name in ("NégÄ", "NégÖ")],
}


def layer(map, **options):
    module = register_negative_diagonal(nn.Linear(3, 3), map=map, **options)
    return init_(module, "weight", nn.init.constant_, -1.5)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_the_same_map_is_taken_and_another_refused(one, other):
    for mine, theirs in ((one, other), (other, one)):
        target, source = layer(mine), init_(layer(theirs), "weight", nn.init.constant_, -2.5)
        before = target.weight.clone()
        with pytest.raises(RuntimeError, match=r"weight: expected a checkpoint of .* found one of"):
            target.load_state_dict(source.state_dict())
        assert torch.equal(target.weight, before)
        target.weight.sum().backward()
        # What the plain state says holds under any map.
        target.load_state_dict(plain_state_dict(source))
        torch.testing.assert_close(target.weight, source.weight)
        alike = layer(copy.deepcopy(theirs))
        alike.load_state_dict(source.state_dict())
        assert torch.equal(alike.weight, source.weight)


DIMS = {
    nn.Linear: [[None, (0, 1), (-2, -1)], [()]],
    nn.Bilinear: [[(0, 1), (-3, -2)], [(1, 2), (-2, -1)], [(0, 2), (-3, -1)], [()]],
}


@pytest.mark.parametrize("cls", DIMS)
def test_dims_are_the_same_however_they_are_counted_and_others_are_refused(cls):
    def made(dims: tuple[int, ...] | None) -> nn.Module:
        return register_negative_diagonal(cls(*(3,) * (2 + (cls is nn.Bilinear))), dims=dims)

    for group, other in product(DIMS[cls], repeat=2):
        for mine, theirs in product(group, other):
            refused = pytest.raises(RuntimeError, match="expected a checkpoint of clamp")
            with nullcontext() if group is other else refused:
                made(mine).load_state_dict(made(theirs).state_dict())


def test_a_bare_class_marks_its_checkpoints_too():
    bare, helped = nn.Linear(3, 3), layer("exp")
    nn.utils.parametrize.register_parametrization(
        bare, "weight", NegExpDiagonal(infeasible="reflect")
    )
    helped.load_state_dict(bare.state_dict())
    assert torch.equal(helped.weight, bare.weight)


def test_what_a_map_has_learnt_is_no_part_of_it():
    source, target = layer(LearnedScale), layer(LearnedScale)
    with torch.no_grad():
        source.parametrizations.weight[0].scale.add_(1)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight, source.weight)
    assert list(plain_state_dict(source)) == ["weight", "bias"]


ARITHMETIC = {
    "mean of three": lambda v: (v + v + v) / 3,
    "moving average": lambda v: 0.9 * v + 0.1 * v,
    "float16": lambda v: v.half(),
    "bfloat16": lambda v: v.bfloat16(),
    "float64": lambda v: v.double(),
    "noise": lambda v: v + 0.5 * torch.randn_like(v),
    "a difference put back": lambda v: v + (v - v),
    "on meta": lambda v: v.to("meta") if v.shape == (256,) else v,
}


@pytest.mark.parametrize("map", rows(MAPS, ("clamp", "transform")))
@pytest.mark.parametrize("change", ARITHMETIC.values(), ids=ARITHMETIC)
def test_a_mark_survives_arithmetic(change, map):
    torch.manual_seed(0)
    source = layer(map)
    assert all(value.norm().isfinite() for value in source.state_dict().values())
    state = {key: change(value) for key, value in source.state_dict().items()}
    layer(map).load_state_dict(state)
    other = register_negative_diagonal(nn.Linear(3, 3), map=map, margin=0.25)
    if not state[MARK].is_meta:
        with pytest.raises(RuntimeError, match=r"margin=0\.25"):
            other.load_state_dict(state)
