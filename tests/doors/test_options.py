"""Options arrive, and print themselves."""

import pytest
from torch import nn

from negdiag_param import NegExpDiagonal, register_negative_diagonal
from tests.support.asserts import assert_negative
from tests.support.tables import BUILT_IN, neg_softplus_transform


def test_options_reach_the_parametrization():
    layer = register_negative_diagonal(
        nn.Linear(2, 2), map=NegExpDiagonal, margin=0.5, infeasible="reflect", cache_in_eval=True
    )
    text = repr(layer.parametrizations.weight[0])
    assert text == ("NegExpDiagonal(margin=0.5, infeasible='reflect', cache_in_eval=True)")


def test_an_instance_is_a_template():
    template = NegExpDiagonal(margin=0.5)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    register_negative_diagonal(model, "*.weight", map=template)
    first, second = (layer.parametrizations.weight[0] for layer in model)
    assert first is not second
    assert first is not template
    for layer in model:
        assert_negative(layer.weight.diagonal(), 0.5)
        assert "margin=0.5" in repr(layer)


@pytest.mark.parametrize("name", BUILT_IN)
def test_repr_shows_what_differs_from_the_defaults(name):
    cls = BUILT_IN[name]
    assert repr(cls()) == f"{cls.__name__}()"
    text = repr(cls(0.5, dims=(0, 1), taps="center", blocks=2, infeasible="error"))
    for part in ("margin=0.5", "dims=(0, 1)", "taps='center'", "blocks=2", "infeasible='error'"):
        assert part in text


def test_repr_shows_the_transform():
    layer = register_negative_diagonal(nn.Linear(2, 2), map=neg_softplus_transform())
    text = repr(layer.parametrizations.weight[0])
    assert "SoftplusTransform" in text
    assert "AffineTransform" in text
