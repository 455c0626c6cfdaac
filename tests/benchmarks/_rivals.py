"""A negative diagonal written by hand, what bounds that, and constraints of other packages."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from negdiag_param import register_negative_diagonal
from tests.benchmarks._measure import Job, cleared

Constrain = Callable[[Tensor], Tensor]


def forum(original: Tensor) -> Tensor:
    weight = original.clone()
    weight.diagonal().copy_(-original.diagonal().exp())
    return weight


def masked(original: Tensor) -> Tensor:
    return torch.where(_mask(len(original)), -original.exp(), original)


def embedded(original: Tensor) -> Tensor:
    diagonal = original.diagonal()
    return original + torch.diag_embed(-diagonal.exp() - diagonal)


def looped(original: Tensor) -> Tensor:
    weight = original.clone()
    for i in range(len(original)):
        weight[i, i] = -original[i, i].exp()
    return weight


def clamp_(weight: Tensor) -> None:
    """What replaces a parametrization after each optimizer step."""
    with torch.no_grad():
        weight.diagonal().clamp_(max=-1e-6)


class _Clone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor) -> Tensor:
        return original.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


FORUM = "clone, then copy to the diagonal"
LOOP = "a Python loop"
RIVALS: dict[str, Constrain] = {
    FORUM: forum,
    "`where` with an identity mask": masked,
    "`diag_embed`": embedded,
    LOOP: looped,
}
FLOOR: dict[str, Constrain] = {"an autograd function that only clones": _Clone.apply}


@lru_cache
def _mask(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool)


def peer_jobs(n: int) -> Iterator[tuple[str, Job | str]]:
    """For every peer: a matrix and its gradient through the constraint, or why there is none."""
    grad = torch.randn(n, n)
    for name, register in _TORCH.items():
        module = nn.Linear(n, n, bias=False)
        try:
            register(module)
        except ImportError:
            yield name, "not installed"
        else:
            read = lambda module=module: module.weight.backward(grad)  # noqa: E731
            yield name, Job(cleared(module.parameters(), read))
    yield "TFP on JAX, jit: TransformDiagonal (-exp)", _tfp(n)


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
