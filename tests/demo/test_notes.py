"""The sentences follow from the figures, whichever way they fall."""

import dataclasses

import pytest
import torch

from negdiag_param._demo.data import HUDSON_BAY
from negdiag_param._demo.fit import Fit
from negdiag_param._demo.notes import notes
from negdiag_param._demo.score import Score, compare

INF = torch.inf
VERDICTS = {
    "better": ([2.0, 2, 2], [1.0, 1, 1], 1),
    "worse": ([1.0, 1, 1], [2.0, 2, 2], -1),
    "the same": ([1.0, 1, 1], [1.001, 1, 0.999], 0),
    "once better": ([1.0, 1, 2], [1.0, 1, 1], 1),
    "better in the mean, worse in most": ([9.0, 1, 1], [1.0, 2, 2], 0),
    "worse in the mean, better in most": ([1.0, 2, 2], [9.0, 1, 1], 0),
    "only the free one runs away": ([INF, 2, 2], [1.0, 1, 1], 1),
    "only the constrained one runs away": ([1.0, 1, 1], [INF, 1, 1], -1),
    "both run away": ([INF, 1, 1], [INF, 1, 1], 0),
}


def score(free, constrained):
    return Score(torch.tensor(free), torch.tensor(constrained))


@pytest.mark.parametrize(("free", "constrained", "sign"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict(free, constrained, sign):
    assert score(free, constrained).verdict == sign
    assert score(constrained, free).verdict == -sign


@pytest.mark.parametrize("pair", [(1.0, 2.0), (1.0, 1.02), (0.0, 1.0), (1.0, INF)])
def test_a_comparison_is_fair(pair):
    assert compare(*pair) == -compare(*reversed(pair)) == -1


@pytest.mark.parametrize("pair", [(1.0, 1.0), (1.0, 1.005), (0.0, 0.0), (INF, INF)])
def test_a_tie_is_a_tie(pair):
    assert compare(*pair) == compare(*reversed(pair)) == 0


def fits(selves=(0.002, -0.005), *, ssr=(1.0, 1.0), converged=True, margin=0.0, kept=True):
    """A free and a constrained fit to all rows and three windows."""
    interactions = torch.tensor([[selves[0], -0.03], [0.02, selves[1]]]).repeat(4, 1, 1)
    free = Fit(
        growth=torch.tensor([0.5, -0.7]).repeat(4, 1),
        interactions=interactions,
        ssr=torch.full((4,), ssr[0]),
        converged=torch.full((4,), True),
        diagonals=torch.zeros(11, 2),
        kept=False,
        margin=None,
    )
    return free, dataclasses.replace(
        free,
        ssr=torch.full((4,), ssr[1]),
        converged=torch.tensor([True, True, True, converged]),
        kept=kept,
        margin=margin,
    )


def said(free=(2.0, 2, 2), constrained=(1.0, 1, 1), **options):
    return "\n".join(notes(HUDSON_BAY, *fits(**options), score([*free], [*constrained])))


def test_the_sentences_of_a_win():
    text = said()
    assert "the constraint wins. Of 3 windows it makes 3 better and 0 worse" in text
    assert "the mean RMSE is 1.000 with and 2.000 without it, the median 1.000 and 2.000" in text


def test_the_sentences_of_a_loss():
    text = said((1.0, 1, 1), (2.0, 2, 2))
    assert "the constraint loses. Of 3 windows it makes 0 better and 3 worse" in text
    assert "wins" not in text.replace("neither wins", "")


def test_the_sentences_of_a_draw():
    assert "the constraint neither wins nor loses" in said((9.0, 1, 1), (1.0, 2, 2))
    assert "changes none of them by 1 % or more" in said((1.0, 1, 1), (1.0, 1, 1))


def test_forecasts_that_run_away_are_counted():
    assert "infinity: 2 without it, 1 with it" in said((INF, INF, 1), (INF, 1, 1))
    assert "run off" not in said()


@pytest.mark.parametrize(
    ("selves", "named", "windows"),
    [
        ((0.002, -0.005), "the self-interaction of the hare is positive", "positive in 3 windows"),
        ((-0.1, 0.005), "the self-interaction of the lynx is positive", "positive in 3 windows"),
        ((0.1, 0.0), "the self-interaction of the hare and lynx is", "positive in 3 windows"),
        ((-0.1, -0.1), "", "Without it, too, every self-interaction is negative"),
    ],
)
def test_signs_are_told_as_they_are(selves, named, windows):
    text = said(selves=selves)
    assert named in text
    assert windows in text
    assert ("crowding helped" in text) == bool(named)


@pytest.mark.parametrize(
    ("ssr", "cost"),
    [((1.0, 1.016), "costs 1.6 % of SSR"), ((1.0, 1.0), "costs nothing"), ((0.0, 0.0), "nothing")],
)
def test_the_price_is_told(ssr, cost):
    assert cost in said(ssr=ssr)


def test_nothing_is_final_before_the_training_is():
    early, late = said(converged=False), said()
    assert early.count("so far: ") == 2
    assert "not finished, 1 of 8 fits being more than 0.1 % above exact least squares" in early
    assert "so far" not in late
    assert "every fit is within 0.1 % of exact least squares" in late


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "diagonals were negative at the start and after each of the 10 steps, in all 4 fits"),
        ({"margin": 0.1}, "diagonals were negative, by the margin or more, at the start"),
    ],
)
def test_the_constraint_is_said_to_have_held_only_where_it_did(options, words):
    assert words in said(**options)
    assert words not in said(**options, kept=False)


def test_a_negative_diagonal_is_not_called_stability():
    assert "not stability: [[-1, 2], [2, -1]] has the eigenvalue +1" in said()
    example = torch.tensor([[-1.0, 2], [2, -1]])
    assert torch.linalg.eigvalsh(example).tolist() == pytest.approx([-3, 1])
