"""The benchmark runs and reports; how fast anything is, no test asserts."""

import json

import pytest
import torch

from tests.benchmarks import overhead
from tests.benchmarks._layers import conv, linear
from tests.benchmarks._memory import peak_bytes
from tests.benchmarks._rivals import FLOOR, MAPS, RIVALS, clamp_, only_clones
from tests.benchmarks._timing import Job, Meter

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
