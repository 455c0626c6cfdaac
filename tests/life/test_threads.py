"""Servers beside a training thread."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal

ROUNDS, SERVERS = 150, 4


@pytest.mark.parametrize("block", [nullcontext, parametrize.cached])
def test_threads_never_see_a_stale_weight_or_one_without_gradients(block):
    """Four servers read while a thread trains: the diagonal a server sees is never older than
    what training had published when it began to read."""
    layer = register_negative_diagonal(nn.Linear(8, 8), map="sign_flip", cache_in_eval=True).eval()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.fill_(-1.0)
    published, done = [1.0], threading.Event()

    def serve() -> None:
        with torch.no_grad():
            while not done.is_set():
                oldest = published[0]
                # The slowest entry tells whether any part of the weight is older.
                assert -layer.weight.max().item() >= oldest

    def train() -> None:
        try:
            for count in range(ROUNDS):
                assert layer.weight.requires_grad
                with torch.no_grad():
                    original.sub_(1.0)
                published[0] = 2.0 + count
        finally:
            done.set()

    with block(), ThreadPoolExecutor(SERVERS + 1) as pool:
        for future in [*(pool.submit(serve) for _ in range(SERVERS)), pool.submit(train)]:
            future.result()
    assert layer.weight.allclose(torch.tensor(-1.0 - ROUNDS))
