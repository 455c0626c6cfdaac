"""Traps of ``parametrize.cached()``."""

import threading

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.traps.naive import feasible, naive


def test_cached_weights_lose_their_gradients():
    """Trap: a weight cached without gradients is handed to callers that need them."""

    def trained_in_cached(layer: nn.Module) -> Tensor:
        with parametrize.cached():
            with torch.no_grad():
                layer.weight  # noqa: B018
            return layer.weight

    assert not trained_in_cached(naive(feasible())).requires_grad
    assert trained_in_cached(register_negative_diagonal(feasible())).requires_grad


def test_cached_weights_go_stale():
    """Trap: a step inside ``cached()`` is not seen by what reads the weight after it."""

    def stepped_in_cached(layer: nn.Module) -> tuple[Tensor, Tensor]:
        with parametrize.cached(), torch.no_grad():
            before = layer.weight.clone()
            layer.parametrizations.weight.original.sub_(1)
            return before, layer.weight

    assert torch.equal(*stepped_in_cached(naive(feasible())))
    assert not torch.equal(*stepped_in_cached(register_negative_diagonal(feasible())))


def test_cached_in_one_thread_caches_in_all():
    """Trap: ``cached()`` is global, so a server thread inside it disturbs a training thread."""

    def trained_beside_a_server(layer: nn.Module) -> Tensor:
        inside, trained = threading.Event(), threading.Event()

        def serve() -> None:
            with parametrize.cached(), torch.no_grad():
                layer.weight  # noqa: B018
                inside.set()
                trained.wait(60)

        server = threading.Thread(target=serve)
        server.start()
        assert inside.wait(60)
        try:
            return layer.weight
        finally:
            trained.set()
            server.join()

    assert not trained_beside_a_server(naive(feasible())).requires_grad
    assert trained_beside_a_server(register_negative_diagonal(feasible())).requires_grad
