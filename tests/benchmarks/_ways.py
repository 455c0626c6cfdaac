"""Ways to keep a diagonal negative: the ready maps, what people do by hand, and a candidate."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from negdiag_param import NegativeDiagonal
from tests.benchmarks._rivals import MAPS

BOUNDARY = -1e-6  # where clamping stops


class NegSquareplusDiagonal(NegativeDiagonal):
    """``-(x + sqrt(x^2 + 4 c^2)) / 2``, a candidate: its tail is not exponential."""

    width = 0.05

    def map(self, x: Tensor) -> Tensor:
        return -(x + (x * x + 4 * self.width**2).sqrt()) / 2

    def inverse(self, d: Tensor) -> Tensor:
        return self.width**2 / d - d


@dataclass(frozen=True)
class Way:
    """How a weight with a negative diagonal comes from what the optimizer trains."""

    start: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    after_step: Callable[[Tensor], object] = lambda original: None


def diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def _mapped(parametrization: NegativeDiagonal) -> Way:
    return Way(parametrization.right_inverse, parametrization)


def _by_hand(after_step: Callable[[Tensor], object]) -> Way:
    return Way(Tensor.clone, lambda original: original, after_step)


def _flip_(weight: Tensor) -> None:
    diagonal(weight).copy_(-diagonal(weight).abs())


CANDIDATES: dict[str, Callable[..., NegativeDiagonal]] = {
    **MAPS,
    "softplus, beta=10": partial(MAPS["softplus"], beta=10.0),
    "squareplus (not in the package)": NegSquareplusDiagonal,
}
FREE, CLAMP = "unconstrained", "clamp after each step"
WAYS = {
    FREE: _by_hand(lambda weight: None),
    CLAMP: _by_hand(lambda weight: diagonal(weight).clamp_(max=BOUNDARY)),
    "flip in place": _by_hand(_flip_),
    **{name: _mapped(made(dims=(-2, -1))) for name, made in CANDIDATES.items()},
}


def weights(
    way: Way,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    start: Tensor,
    gradient: Callable[[Tensor, int], Tensor],
    steps: int,
) -> Iterator[Tensor]:
    """Trains a batch of weights, each a parameter of its own, as Muon asks, where there are few.

    Args:
        way: how to keep them negative.
        make: makes the optimizer.
        start: where they start.
        gradient: that of the loss, given the weights and the number of the step.
        steps: how many.

    Yields:
        The weights at the start and after every step.
    """
    whole = way.start(start)
    parts = whole.unbind() if len(whole) < 16 else [whole]
    originals = [part.clone().requires_grad_() for part in parts]
    optimizer = make(originals)
    for step in range(steps + 1):
        seen = [way.weight(original) for original in originals]
        weight = torch.stack(seen) if len(seen) > 1 else seen[0]
        yield weight.detach().clone()  # by hand, the next step writes into it
        optimizer.zero_grad()
        weight.backward(gradient(weight.detach(), step))
        optimizer.step()
        with torch.no_grad():
            for original in originals:
                way.after_step(original)
