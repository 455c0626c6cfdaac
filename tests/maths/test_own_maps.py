"""Maps of users' own, and subclasses of the ready ones."""

import re

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


def test_a_subclass_that_overrides_the_map_of_a_ready_one_is_honoured():
    class Doubled(NegExpDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -2 * x.exp()

        def inverse(self, d: Tensor) -> Tensor:
            return (-d / 2).log()

    parametrization = Doubled()
    weight = -torch.eye(2) * 3
    original = parametrization.right_inverse(weight)
    assert original[0, 0].exp().item() == pytest.approx(1.5)
    torch.testing.assert_close(parametrization(original), weight)


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


@pytest.mark.parametrize("place", [before, after, inside, below], ids=lambda place: place.__name__)
@pytest.mark.parametrize("mixin", [NearlyExp, TwiceExp, NearlyLog, NearlySquared])
def test_an_override_is_heard_or_refused(mixin, place):
    weight = -2.0 * torch.eye(3, dtype=torch.float64)
    try:
        parametrization = place(mixin, NegExpDiagonal)()
        original = parametrization.right_inverse(weight)
        found = parametrization(original).diagonal()
    except (TypeError, ValueError) as error:
        assert re.search(r"\b(map|inverse)\b", str(error))  # noqa: PT017
        return
    rule = mixin()
    if hasattr(rule, "map"):
        torch.testing.assert_close(found, rule.map(original.diagonal()))
    if hasattr(rule, "inverse"):
        torch.testing.assert_close(original.diagonal(), rule.inverse(weight.diagonal()))


@pytest.mark.parametrize("mixin", [NearlyExp, NearlyLog, NearlySquared])
def test_an_override_that_fits_is_heard(mixin):
    layer = register_negative_diagonal(linear(-2.0), map=inside(mixin, NegExpDiagonal))
    parametrization = layer.parametrizations.weight[0]
    original = layer.parametrizations.weight.original.detach()
    rule = {"map": parametrization.map, "inverse": parametrization.inverse}
    torch.testing.assert_close(layer.weight.diagonal(), rule["map"](original.diagonal()))
    torch.testing.assert_close(original.diagonal(), rule["inverse"](torch.full((3,), -2.0)))


def test_an_override_that_does_not_fit_is_refused():
    layer = linear(-2.0)
    with pytest.raises(ValueError, match=r"weight: .*inverse"):
        register_negative_diagonal(layer, map=inside(TwiceExp, NegExpDiagonal))
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
