"""Servers beside a training thread."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal


@pytest.mark.parametrize("inside_cached", [False, True])
def test_threads_never_see_a_stale_weight_or_one_without_gradients(inside_cached):
    """Four servers read while a thread trains: the diagonal a server sees is never older than
    what training had published when it began to read."""
    rounds, servers = 150, 4
    layer = register_negative_diagonal(nn.Linear(8, 8), map="sign_flip", cache_in_eval=True).eval()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.fill_(-1.0)
    published, failures, done = [1.0], [], threading.Event()

    def serve() -> None:
        try:
            with torch.no_grad():
                while not done.is_set():
                    oldest = published[0]
                    # The slowest entry tells whether any part of the weight is older.
                    if -layer.weight.max().item() < oldest:
                        failures.append("stale")
                        return
        except BaseException as error:
            failures.append(repr(error))
            raise

    def train() -> None:
        try:
            for count in range(rounds):
                if not layer.weight.requires_grad:
                    failures.append("no gradients")
                    return
                with torch.no_grad():
                    original.sub_(1.0)
                published[0] = 2.0 + count
        except BaseException as error:
            failures.append(repr(error))
            raise
        finally:
            done.set()

    threads = [threading.Thread(target=serve) for _ in range(servers)]
    threads.append(threading.Thread(target=train))
    with parametrize.cached() if inside_cached else torch.enable_grad():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    assert layer.weight.allclose(torch.tensor(-1.0 - rounds))
