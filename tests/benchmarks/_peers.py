"""Constraints that other packages put on a matrix, as installed; none is exactly this one."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from negdiag_param import register_negative_diagonal
from tests.benchmarks._timing import Job


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


def _pass(module: nn.Module, grad: Tensor) -> Callable[[], None]:
    parameters = list(module.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        module.weight.backward(grad)

    return step


def _geotorch(constraint: str, module: nn.Module) -> None:
    import geotorch

    getattr(geotorch, constraint)(module, "weight")


_TORCH: dict[str, Callable[[nn.Module], object]] = {
    "negdiag_param: negative diagonal (clamp)": register_negative_diagonal,
    "torch weight_norm: rows of learned length": parametrizations.weight_norm,
    "torch orthogonal: orthogonal matrix": parametrizations.orthogonal,
    "geotorch.skew: antisymmetric, hence zero diagonal": partial(_geotorch, "skew"),
    "geotorch.positive_definite: positive eigenvalues": partial(_geotorch, "positive_definite"),
}
_TFP = "TFP on JAX, jit: TransformDiagonal (-exp)"


def _tfp(n: int) -> Job | str:
    try:
        import jax
        from tensorflow_probability.substrates.jax import bijectors
    except ImportError:
        return "not installed"
    except AttributeError as error:
        # TFP reads names of JAX that later releases removed.
        return f"fails to import: {error}"
    negative = bijectors.Chain([bijectors.Scale(-1.0), bijectors.Exp()])
    constrain = bijectors.TransformDiagonal(negative).forward

    @jax.jit
    def weight_and_grad(original: object, grad: object) -> tuple[object, object]:
        weight, pullback = jax.vjp(constrain, original)
        return weight, pullback(grad)

    original, grad = (jax.random.normal(jax.random.key(seed), (n, n)) for seed in (0, 1))
    return Job(lambda: jax.block_until_ready(weight_and_grad(original, grad)))
