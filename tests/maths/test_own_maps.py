"""Maps of users' own, and subclasses of the ready ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from negdiag_param import NegativeDiagonal, NegExpDiagonal, register_negative_diagonal
from tests.support.modules import linear
from tests.support.tables import BUILT_IN, every_margin


def test_the_base_class_says_what_to_define():
    with pytest.raises(NotImplementedError, match=r"must define map"):
        NegativeDiagonal()(torch.randn(2, 2))


FORMULAS = {
    "clamp": lambda x: x.clamp(max=-torch.finfo(x.dtype).tiny),
    "exp": lambda x: -x.exp(),
    "softplus": lambda x: -F.softplus(x),
    "square": lambda x: -x.square() - 0.01 * x.abs(),
    "sign_flip": lambda x: -x.abs(),
}


@every_margin
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_ready_class_has_its_map_and_inverse_without_the_margin(name, margin):
    parametrization = BUILT_IN[name](margin)
    x = torch.linspace(-9, 9, 55, dtype=torch.float64)
    torch.testing.assert_close(parametrization.map(x), FORMULAS[name](x))
    d = -torch.logspace(-9, 9, 55, dtype=torch.float64)
    torch.testing.assert_close(parametrization.map(parametrization.inverse(d)), d)


class NearlyExp:
    """Another map, near enough for the inverse of exp."""

    def map(self, x: Tensor) -> Tensor:
        return -1.001 * x.exp()


class TwiceExp:
    """Another map, with which the inverse of exp does not fit."""

    def map(self, x: Tensor) -> Tensor:
        return -2 * x.exp()


class NearlyLog:
    def inverse(self, d: Tensor) -> Tensor:
        return (-d).log() + 1e-3


class NearlySquared:
    def map(self, x: Tensor) -> Tensor:
        return -x.exp().square()

    def inverse(self, d: Tensor) -> Tensor:
        return (-d).log() / 2 + 1e-3


def before(mixin: type, ready: type) -> type:
    return type("Own", (mixin, ready), {})


def after(mixin: type, ready: type) -> type:
    return type("Own", (ready, mixin), {})


def inside(mixin: type, ready: type) -> type:
    own = {name: value for name, value in vars(mixin).items() if name in ("map", "inverse")}
    return type("Own", (ready,), own)


def below(mixin: type, ready: type) -> type:
    """A subclass of a subclass."""
    return type("Lower", (inside(mixin, ready),), {})


@pytest.mark.parametrize("place", [before, inside, below])
@pytest.mark.parametrize("mixin", [NearlyExp, NearlyLog, NearlySquared])
def test_an_override_that_fits_is_heard(mixin, place):
    layer = register_negative_diagonal(linear(-2.0), map=place(mixin, NegExpDiagonal))
    original = layer.parametrizations.weight.original.diagonal()
    if hasattr(mixin, "map"):
        torch.testing.assert_close(layer.weight.diagonal(), mixin().map(original))
    if hasattr(mixin, "inverse"):
        torch.testing.assert_close(original, mixin().inverse(torch.full((3,), -2.0)))


@pytest.mark.parametrize(
    ("mixin", "place", "error", "words"),
    [
        *((TwiceExp, place, ValueError, r"weight: .*inverse") for place in (before, inside, below)),
        (TwiceExp, after, TypeError, r"expected TwiceExp, which defines map, before"),
        (NearlyLog, after, TypeError, r"expected NearlyLog, which defines inverse, before"),
    ],
)
def test_an_override_that_does_not_fit_or_comes_too_late_is_refused(mixin, place, error, words):
    layer = linear(-2.0)
    with pytest.raises(error, match=words):
        register_negative_diagonal(layer, map=place(mixin, NegExpDiagonal))
    assert type(layer) is nn.Linear


class Between(NegativeDiagonal):
    """From -2 to -0.1."""

    def map(self, x: Tensor) -> Tensor:
        return -0.1 - 1.9 * x.sigmoid()

    def inverse(self, d: Tensor) -> Tensor:
        return ((-d - 0.1) / 1.9).clamp(1e-7, 1 - 1e-7).logit()


@pytest.mark.parametrize(
    ("map", "value"),
    [(inside(TwiceExp, NegExpDiagonal), -0.01), (Between, -0.095), (Between, -2.1)],
)
def test_what_an_inverse_misses_is_refused_however_small(map, value):
    layer = linear(value)
    with pytest.raises(ValueError, match=r"weight: expected (a diagonal between|an inverse that)"):
        register_negative_diagonal(layer, map=map)
    assert type(layer) is nn.Linear
