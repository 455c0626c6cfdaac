"""Ways to write a negative diagonal by hand, and what bounds all of them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Constrain = Callable[[Tensor], Tensor]


def forum(original: Tensor) -> Tensor:
    weight = original.clone()
    weight.diagonal().copy_(-original.diagonal().exp())
    return weight


def masked(original: Tensor) -> Tensor:
    return torch.where(_mask(len(original), original.device), -original.exp(), original)


def embedded(original: Tensor) -> Tensor:
    diagonal = original.diagonal()
    return original + torch.diag_embed(-diagonal.exp() - diagonal)


def looped(original: Tensor) -> Tensor:
    weight = original.clone()
    for i in range(len(original)):
        weight[i, i] = -original[i, i].exp()
    return weight


def only_clones(original: Tensor) -> Tensor:
    return _Clone.apply(original)


def clamp_(weight: Tensor) -> None:
    """What replaces a parametrization after each optimizer step."""
    with torch.no_grad():
        weight.diagonal().clamp_(max=-1e-6)


FORUM = "clone, then copy to the diagonal"
LOOP = "a Python loop"
RIVALS: dict[str, Constrain] = {
    FORUM: forum,
    "`where` with an identity mask": masked,
    "`diag_embed`": embedded,
    LOOP: looped,
}
FLOOR: dict[str, Constrain] = {"an autograd function that only clones": only_clones}


@lru_cache
def _mask(n: int, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=torch.bool, device=device)


class _Clone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor) -> Tensor:
        return original.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()
