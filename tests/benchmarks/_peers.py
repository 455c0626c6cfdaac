"""Constraints that other packages put on a matrix, as installed; none is exactly this one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from negdiag_param import register_negative_diagonal
from tests.benchmarks._timing import Job

Peer = Callable[[nn.Module], object]


def peer_jobs(n: int, device: torch.device) -> Iterator[tuple[str, Job | str]]:
    """For every peer: a matrix and its gradient through the constraint, or why there is none."""
    grad = torch.randn(n, n, device=device)
    for name, register in _TORCH.items():
        module = nn.Linear(n, n, bias=False, device=device)
        try:
            register(module)
        except ImportError:
            yield name, "not installed"
        else:
            yield name, Job(_pass(module, grad))
    yield _TFP, _tfp(n) if device.type == "cpu" else "CPU only"


def _pass(module: Any, grad: Tensor) -> Callable[[], None]:
    parameters = list(module.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        module.weight.backward(grad)

    return step


def _geotorch(constraint: str) -> Peer:
    def register(module: nn.Module) -> None:
        import geotorch  # type: ignore[import-not-found]

        getattr(geotorch, constraint)(module, "weight")

    return register


_TORCH: dict[str, Peer] = {
    "negdiag_param: negative diagonal (clamp)": register_negative_diagonal,
    "torch weight_norm: rows of learned length": parametrizations.weight_norm,
    "torch orthogonal: orthogonal matrix": parametrizations.orthogonal,
    "geotorch.skew: antisymmetric, hence zero diagonal": _geotorch("skew"),
    "geotorch.positive_definite: positive eigenvalues": _geotorch("positive_definite"),
}
_TFP = "TFP on JAX, jit: TransformDiagonal (-exp)"


def _tfp(n: int) -> Job | str:
    try:
        import jax  # type: ignore[import-not-found]
        from tensorflow_probability.substrates import jax as tfp  # type: ignore
    except ImportError:
        return "not installed"
    except AttributeError as error:
        # TFP reads names of JAX that later releases removed.
        return f"fails to import: {error}"
    bijectors = tfp.bijectors
    negative = bijectors.Chain([bijectors.Scale(-1.0), bijectors.Exp()])
    constrain = bijectors.TransformDiagonal(negative).forward

    @jax.jit  # type: ignore[untyped-decorator]
    def weight_and_grad(original: Any, grad: Any) -> tuple[Any, Any]:
        weight, pullback = jax.vjp(constrain, original)
        return weight, pullback(grad)

    original, grad = (jax.random.normal(jax.random.key(seed), (n, n)) for seed in (0, 1))
    return Job(lambda: jax.block_until_ready(weight_and_grad(original, grad)))
