"""The words follow from the figures, and the published figures are those of the data."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from negdiag_param._demo.report import notes, sign_test, table, verdict, votes

INF, WRONG = torch.inf, "of a wrong sign, free"


def made_up(constrained, free, ends=(4, 5, 6, 7, 8, 9, 10), kept=True, off=0.0):
    """A comparison of windows whose errors are given, and the rows that they end at."""
    pairs = list(zip(constrained, free, strict=True))
    weights = {"constrained": 0.0, "clamped by hand": off, "wrong signs dropped": -2 * off}
    return SimpleNamespace(
        data=SimpleNamespace(name="made up"),
        kind="midpoint",
        windows=[range(end - 4, end) for end in ends[: len(pairs)]],
        wrong=torch.tensor([a != b for a, b in pairs]),
        weights={name: torch.tensor([value]) for name, value in weights.items()},
        errors={"constrained": torch.tensor(constrained), "free": torch.tensor(free)},
        kept=kept,
    )


def test_a_last_row_has_one_vote_and_small_differences_none():
    assert votes(made_up([1.0, 2.0, 3.0], [2.0, 2.01, 2.0]), "free") == (1, 1)
    assert votes(made_up([1.0, INF, 1.0, INF], [INF, 1.0, INF, INF]), "free") == (2, 1)
    assert votes(made_up([1.0, 1.0, 3.0, 3.0], [2.0] * 4, (4, 4, 4, 5)), "free") == (1, 1)
    assert votes(made_up([1.0, 3.0], [2.0, 2.0], (4, 4)), "free") == (0, 0)


@pytest.mark.parametrize(
    ("better", "worse", "p", "words"),
    [
        (0, 0, 1, "neither better nor worse than free"),
        (5, 0, 0.0625, "5 better than free, 0 worse: p = 0.062 may be chance"),
        (6, 0, 0.03125, "0 worse: p = 0.031 is beyond chance, were votes independent"),
        (0, 6, 0.03125, "0 better than free, 6 worse: p = 0.031 is beyond chance"),
        (10, 4, 0.1796, "10 better than free, 4 worse: p = 0.18 may be chance"),
    ],
)
def test_the_verdict_follows_from_a_sign_test(better, worse, p, words):
    assert sign_test(better, worse) == pytest.approx(p, rel=1e-3)
    assert words in verdict(better, worse)


def rows(results):
    """The labels of the table with their cells, in order."""
    return [(w[0], w[1:]) for w in (re.split(r"\s{2,}", row.strip()) for row in table(results))]


def test_the_table_follows_from_the_figures():
    found = rows([made_up([1.0] * 6 + [5.0], [2.0] * 6 + [5.0]), made_up([1.0, 2.0], [1.0, 2.0])])
    assert found[4:6] == [(WRONG, ["6", "0"]), ("their numbers of rows", ["4 to 4"])]
    assert found[7] == ("free", ["6 - 0*", "0 - 0"])
    assert found[9:] == [("constrained", ["1 (1)"]), ("free", ["2 (2)"])]


def test_the_notes_follow_from_the_figures():
    said = "\n".join(notes([made_up([1.0, INF], [2.0, INF], kept=False, off=0.25)], 0.5))
    assert "made up, midpoint: 1 better than free, 0 worse: p = 1 may be chance" in said
    assert "constrained and clamped by hand, differ by at most 0.2\n" in said
    assert "constrained and wrong signs dropped, differ by at most 0.5\n" in said
    assert "negative and at most -0.5 after each of 2000 steps: NO" in said
    assert said.endswith("ran off to infinity (negative is not stable): 1")
    assert "at most 0 after each of 2000 steps: yes" in list(notes([made_up([1.0], [1.0])], 0.0))[4]


def test_the_published_figures(results):
    found = rows(results)
    assert found[4] == (WRONG, ["2", "3", "24", "128"])
    assert found[7:12] == [
        ("free", ["2 - 0", "3 - 0", "7 - 0*", "10 - 4"]),
        *((name, ["0 - 0"] * 4) for name in ("clamped by hand", "wrong signs dropped")),
        ("diagonal dropped", ["5 - 0", "5 - 0", "11 - 4", "8 - 7"]),
        ("last row repeated", ["5 - 0", "5 - 0", "13 - 3*", "14 - 3*"]),
    ]
    assert max(map(len, [*table(results), *notes(results, 0.0)])) <= 100
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    caption = re.findall(r"\d+", readme.split("*Each dot")[1].split("*")[0])
    assert caption == ["3", "15", "128", "153", "2", "24"]
