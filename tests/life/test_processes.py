"""Shared memory and spawned processes."""

import pytest
import torch

from tests.support.asserts import registered
from tests.support.tables import LAYERS

pytestmark = pytest.mark.slow


def answer(queue, answers) -> None:
    module = queue.get()
    with torch.no_grad():
        answers.put(module.weight.sum().item())
        module.parametrizations.weight.original.zero_()
        answers.put(module.weight.sum().item())


def test_a_spawned_process_shares_the_original():
    module = registered(LAYERS["linear"], "exp").share_memory()
    context = torch.multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=answer, args=(queue, answers))
    process.start()
    queue.put(module)
    expected = module.weight.sum().item()
    assert answers.get() == pytest.approx(expected)
    assert answers.get() == pytest.approx(-4)
    process.join()
    assert module.weight.sum().item() == pytest.approx(-4)
