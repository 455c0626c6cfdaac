"""The benchmark runs and reports; how fast anything is, no test asserts."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.benchmarks import _ways, endurance, overhead, training
from tests.benchmarks._measure import Job, Table, compare, peak_bytes
from tests.benchmarks._ways import CANDIDATES, CLAMP, WAYS, diagonal
from tests.benchmarks.overhead import FLOOR, RIVALS, clamp_, conv, linear
from tests.benchmarks.training import Score
from tests.support.tables import BUILT_IN as MAPS


def printed_tables(text):
    """By title, the cells of each row by its name."""
    return {
        title: dict(re.findall(r"^\| ([^|-]+) \| (.*) \|$", table, re.MULTILINE))
        for title, table in re.findall(r"^### (.+)\n\n.+\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    }


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TFP's, of JAX
def test_the_costs(monkeypatch, tmp_path, capsys):
    few = (linear(4, 2), conv(2, 1, size=4))
    monkeypatch.setattr(overhead, "QUICK", overhead.Effort(0.0, [4], few, [], [4], [2, 4], 8))
    overhead.main(["--quick", "--json", str(tmp_path / "report.json")])
    printed, progress = capsys.readouterr()
    tables = printed_tables(printed)
    assert len(tables) == 8
    report = json.loads((tmp_path / "report.json").read_text())
    assert [table["title"] for table in report["tables"]] == [*tables]
    for rows in tables.values():
        assert rows
        for cells in rows.values():
            for cell in filter(None, cells.split(" | ")):
                ratio = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell)
                assert ratio or re.fullmatch(r"not installed|fails to .*|\d\.\d\d", cell)
                if ratio:
                    median, low, high = map(float, ratio.groups())
                    assert 0 < low <= median <= high
    assert "alone, n=4" in progress


@pytest.mark.slow
@pytest.mark.integration
def test_the_study_of_maps(monkeypatch, capsys):
    tiny = replace(training.QUICK, sizes=(4,), budget=20, settle=20, force=10)
    monkeypatch.setattr(training, "QUICK", tiny)
    training.main(["--quick", "--seed", "3"])
    printed, progress = capsys.readouterr()
    tables, (_, verdict) = printed_tables(printed), printed.split("### Columns that ")
    assert len(tables) == 8
    for title, rows in tables.items():
        assert title in progress
        assert rows.keys() == WAYS.keys()
        assert rows["clamp"] == rows[CLAMP]
    assert all(f"- {name}:" in verdict for name in CANDIDATES)
    assert "nan" not in printed


def test_candidates_win_where_all_rivals_lose():
    steps, larger = Table("Steps", ""), Table("largest learning rate of SGD", "")
    won, close = dict.fromkeys(WAYS, 3.0), dict.fromkeys(WAYS, 3.0)
    steps.put("won", won | {"square": 2.0})
    steps.put("close", close | {"square": 2.0, "softplus": 2.9})
    larger.put("lost", won | {"square": 2.0})
    larger.put("won too", won | {"square": 6.0})
    verdict = training.verdict([steps, larger])
    assert re.findall("  - (.*)", verdict) == [
        "Steps: won, by 1.5",
        "largest learning rate of SGD: won too, by 2.0",
    ]


@pytest.mark.parametrize("name", WAYS)
def test_every_way_starts_at_the_weight_and_stays_negative(name):
    problems = _ways.regressions(4, 3, torch.Generator().manual_seed(0), *training.KINDS["beyond"])
    make = partial(torch.optim.SGD, lr=0.1)
    seen = list(_ways.weights(WAYS[name], make, problems.start, problems.gradient, 20))
    torch.testing.assert_close(seen[0], problems.start)
    assert problems.gradient(seen[-1]).norm() < problems.gradient(seen[0]).norm()
    assert all((diagonal(weight) < 0).all() for weight in seen)


@pytest.mark.parametrize("kind", training.KINDS)
def test_the_best_diagonal_is_the_best_feasible_one(kind):
    problems = _ways.regressions(4, 3, torch.Generator().manual_seed(0), *training.KINDS[kind])
    assert (problems.best < 0).all()
    feasible = (diagonal(problems.target) < 0).all(-1)
    expected = diagonal(problems.target)[feasible]
    torch.testing.assert_close(problems.best[feasible], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rate", [0.05, 0.95, 1.05])
def test_rates_are_in_units_of_the_largest_stable_one(rate):
    problems = _ways.single_entries([-2.0, -0.5]).scaled([rate])
    steps = training.steps_to_stay(CLAMP, partial(torch.optim.SGD, lr=1.0), problems, 300)
    assert steps.isfinite().all() == (rate < 1)


def test_the_largest_rates():
    plain, exp = (training.largest_rates(way, [1.0, 3.0], 600, 0) for way in ("clamp", "exp"))
    assert plain == [1.0, 1.0]
    assert exp[1] < 0.3 < exp[0]


def test_what_never_arrives_counts_with_the_whole_budget():
    score = Score.of(torch.tensor([10.0, math.inf]), torch.tensor([20.0, 50.0]), budget=100)
    assert str(score) == "1.00 (50 %)"
    assert str(Score.of(torch.tensor([300.0]), torch.tensor([10.0]), budget=1000)) == "30"


def test_endurance_holds_every_map_under_every_optimizer(monkeypatch, capsys):
    endurance.main(["--steps", "50"])
    (rows,) = printed_tables(capsys.readouterr().out).values()
    assert rows.keys() == {CLAMP, *MAPS}
    assert rows["clamp"] == rows[CLAMP]
    monkeypatch.setitem(WAYS, "unconstrained", _ways.Way())
    with pytest.raises(RuntimeError, match="expected negative entries at every step of uncon"):
        endurance.endured("unconstrained", "SGD", 10)


def test_rivals_do_the_same_job():
    original, grad = torch.randn(5, 5, requires_grad=True), torch.randn(5, 5)
    expected = MAPS["exp"]()(original)
    (gradient,) = torch.autograd.grad(expected, original, grad)
    for name, way in RIVALS.items():
        torch.testing.assert_close(way(original), expected, msg=name)
        found = torch.autograd.grad(way(original), original, grad)
        torch.testing.assert_close(found[0], gradient, msg=name)
    weight = original.detach().clone()
    assert all(torch.equal(way(weight), weight) for way in FLOOR.values())
    clamp_(weight)
    assert (weight.diagonal() < 0).all()


def test_peak_bytes_counts_what_is_held_at_once():
    weight = torch.randn(64, 64)
    assert peak_bytes(lambda: [weight.clone().numel() for _ in range(2)]) == 4 * 64 * 64
    assert peak_bytes(lambda: [weight.clone() for _ in range(2)]) == 2 * 4 * 64 * 64


def test_cheap_jobs_are_repeated():
    calls = []
    ratios = compare(Job(lambda: torch.ones(2)), {"job": Job(lambda: calls.append(1))}, 0.0)
    assert len(calls) > 100
    assert set(ratios) == {"job"}
