"""Maps of users' own, and subclasses of the ready ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import NegativeDiagonal, NegExpDiagonal, register_negative_diagonal
from tests.support.modules import linear
from tests.support.slots import FORMULAS
from tests.support.tables import BUILT_IN, every_margin


def test_the_base_class_says_what_to_define():
    with pytest.raises(NotImplementedError, match=r"must define map"):
        NegativeDiagonal()(torch.randn(2, 2))


@every_margin
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_ready_class_has_its_map_and_inverse_without_the_margin(name, margin):
    parametrization = BUILT_IN[name](margin)
    x = torch.linspace(-9, 9, 55, dtype=torch.float64)
    torch.testing.assert_close(parametrization.map(x), FORMULAS[name](x, 0.0))
    d = -torch.logspace(-9, 9, 55, dtype=torch.float64)
    torch.testing.assert_close(parametrization.map(parametrization.inverse(d)), d)


Methods = dict[str, Callable[[object, Tensor], Tensor]]
# Maps and inverses near enough to those of exp, and one that is not.
NEARLY_EXP: Methods = {"map": lambda self, x: -1.001 * x.exp()}
NEARLY_LOG: Methods = {"inverse": lambda self, d: (-d).log() + 1e-3}
NEARLY_SQUARED: Methods = {
    "map": lambda self, x: -x.exp().square(),
    "inverse": lambda self, d: (-d).log() / 2 + 1e-3,
}
TWICE_EXP: Methods = {"map": lambda self, x: -2 * x.exp()}


def before(own: Methods) -> type:
    return type("Own", (type("Mixin", (), own), NegExpDiagonal), {})


def inside(own: Methods) -> type:
    return type("Own", (NegExpDiagonal,), own)


def below(own: Methods) -> type:
    """A subclass of a subclass."""
    return type("Lower", (inside(own),), {})


def after(own: Methods) -> type:
    return type("Own", (NegExpDiagonal, type("Mixin", (), own)), {})


@pytest.mark.parametrize("place", [before, inside, below])
@pytest.mark.parametrize("own", [NEARLY_EXP, NEARLY_LOG, NEARLY_SQUARED])
def test_an_override_that_fits_is_heard(own, place):
    layer = register_negative_diagonal(linear(-2.0), map=place(own))
    original = layer.parametrizations.weight.original.diagonal()
    if "map" in own:
        torch.testing.assert_close(layer.weight.diagonal(), own["map"](None, original))
    if "inverse" in own:
        torch.testing.assert_close(original, own["inverse"](None, torch.full((3,), -2.0)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_map_made_of_a_ready_one_has_its_slopes(name):
    ready = BUILT_IN[name]

    class Twice(ready):
        def map(self, x: Tensor) -> Tensor:
            return 2 * super().map(x)

        def inverse(self, d: Tensor) -> Tensor:
            return super().inverse(d / 2)

    # At the corners of the maps, beyond the bound, and where the value overflows.
    x = torch.tensor([0.0, -1.0, 2.0, 80.0])
    slopes = []
    for parametrization in (ready(dims=()), Twice(dims=())):
        original = x.clone().requires_grad_()
        parametrization(original).sum().backward()
        slopes.append(original.grad)
    torch.testing.assert_close(slopes[1], 2 * slopes[0])


class Between(NegativeDiagonal):
    """From -2 to -0.1."""

    def map(self, x: Tensor) -> Tensor:
        return -0.1 - 1.9 * x.sigmoid()

    def inverse(self, d: Tensor) -> Tensor:
        return ((-d - 0.1) / 1.9).clamp(1e-7, 1 - 1e-7).logit()


MISSED = r"weight: expected (a diagonal between|an inverse that)"


@pytest.mark.parametrize(
    ("map", "value", "error", "words"),
    [
        *((place(TWICE_EXP), -2.0, ValueError, MISSED) for place in (before, inside, below)),
        (inside(TWICE_EXP), -0.01, ValueError, MISSED),
        (Between, -0.095, ValueError, MISSED),
        (Between, -2.1, ValueError, MISSED),
        (after(TWICE_EXP), -2.0, TypeError, r"expected Mixin, which defines map, before"),
        (after(NEARLY_LOG), -2.0, TypeError, r"expected Mixin, which defines inverse, before"),
    ],
)
def test_an_override_that_does_not_fit_or_comes_too_late_is_refused(map, value, error, words):
    layer = linear(value)
    with pytest.raises(error, match=words):
        register_negative_diagonal(layer, map=map)
    assert type(layer) is nn.Linear
