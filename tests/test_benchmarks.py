"""The benchmark runs and reports; how fast anything is, no test asserts."""

import json
from dataclasses import replace

import pytest
import torch

from tests.benchmarks import endurance, overhead, training
from tests.benchmarks._layers import conv, linear
from tests.benchmarks._memory import peak_bytes
from tests.benchmarks._problems import TARGETS, regressions
from tests.benchmarks._rivals import FLOOR, MAPS, RIVALS, clamp_, only_clones
from tests.benchmarks._timing import Job, Meter
from tests.benchmarks._ways import FREE, WAYS, diagonal, weights

TINY = overhead.Effort(
    seconds=0.0,
    sizes=(4,),
    layers=(linear(4, 2), conv(2, 1, size=4)),
    compiled=(),
    peers=(4,),
    growth=(2, 4),
    memory=8,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TFP's, of JAX
def test_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(overhead, "QUICK", TINY)
    file = tmp_path / "report.json"
    assert overhead.main(["--quick", "--json", str(file)]) == 0
    printed, progress = capsys.readouterr()
    report = json.loads(file.read_text())
    assert report["torch_version"] == torch.__version__
    assert len(report["tables"]) == 7
    for table in report["tables"]:
        assert table["title"] in printed
        assert table["rows"]
        for cells in table["rows"].values():
            assert cells
            for cell in cells.values():
                if isinstance(cell, dict):
                    assert 0 < cell["low"] <= cell["median"] <= cell["high"]
    assert "alone, n=4" in progress


@pytest.mark.slow
def test_the_study_of_maps(monkeypatch, capsys):
    tiny = replace(training.QUICK, sizes=(4,), budget=20, force=10, recurrent=1)
    monkeypatch.setattr(training, "QUICK", tiny)
    assert training.main(["--quick", "--seed", "3"]) == 0
    printed, progress = capsys.readouterr()
    assert printed.count("\n### ") == 6
    for way in WAYS:
        assert printed.count(f"\n| {way} |") >= 5
    assert "nan" not in printed
    assert "default layers, Adam" in progress


@pytest.mark.parametrize("name", WAYS)
def test_every_way_starts_at_the_weight_and_stays_negative(name):
    generator = torch.Generator().manual_seed(0)
    problems = regressions(4, 3, "default", "beyond", generator)
    seen = list(weights(WAYS[name], torch.optim.SGD, problems.start, problems.gradient, 20))
    torch.testing.assert_close(seen[0], problems.start)
    assert (problems.loss(seen[-1]) < problems.loss(seen[0])).all()
    if name != FREE:
        assert all((diagonal(weight) < 0).all() for weight in seen)


@pytest.mark.parametrize("target", TARGETS)
def test_the_best_diagonal_is_the_best_feasible_one(target):
    problems = regressions(4, 3, "default", target, torch.Generator().manual_seed(0))
    assert (problems.best < 0).all()
    feasible = (diagonal(problems.target) < 0).all(-1)
    expected = diagonal(problems.target)[feasible]
    torch.testing.assert_close(problems.best[feasible], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_is_missing(capsys):
    assert overhead.main(["--device", "cuda"]) == 2
    printed, error = capsys.readouterr()
    assert not printed
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_do_the_same_job(name):
    original = torch.randn(5, 5, requires_grad=True)
    grad = torch.randn(5, 5)
    results = [way(original) for way in (RIVALS[name], MAPS["exp"]())]
    gradients = [torch.autograd.grad(result, original, grad)[0] for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_floor_and_clamp():
    weight = torch.randn(5, 5)
    assert all(torch.equal(way(weight), weight) for way in FLOOR.values())
    clamp_(weight)
    assert (weight.diagonal() < 0).all()


def test_peak_bytes_counts_what_is_held_at_once():
    weight = torch.randn(64, 64)

    def one_after_the_other():
        weight.clone()
        weight.clone()

    def both():
        return weight.clone(), weight.clone()

    assert peak_bytes(one_after_the_other, weight.device) == 4 * 64 * 64
    assert peak_bytes(both, weight.device) == 2 * 4 * 64 * 64


def test_cheap_jobs_are_repeated():
    calls = []
    meter = Meter(torch.device("cpu"), seconds=0.0, sample_seconds=1e-4)
    ratios = meter.compare(
        Job(lambda: only_clones(torch.ones(2))), {"job": Job(lambda: calls.append(1))}
    )
    assert len(calls) > 100
    assert set(ratios) == {"job"}


def test_every_map_stays_negative_under_every_optimizer(capsys):
    assert endurance.main(["--steps", "100"]) == 0
    printed, _ = capsys.readouterr()
    for name in MAPS:
        assert f"\n| {name} | -" in printed
