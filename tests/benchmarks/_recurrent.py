"""A real task: a continuous-time RNN learns another's output."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.benchmarks._ways import WAYS


def recurrent_error(way: str, optimizer: str, lr: float, budget: int, seed: int) -> Tensor:
    """The error that is left after training."""
    generator = torch.Generator().manual_seed(seed)
    n, dt = 16, 0.1

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(n)

    inputs = draw(32, 15, n) * math.sqrt(n)
    teacher = [draw(n, n) - torch.eye(n), draw(n, n), draw(n, n)]
    student = [draw(n, n), draw(n, n), draw(n, n)]
    student[0].diagonal().copy_(-student[0].diagonal().abs())

    def states(a: Tensor, w: Tensor, b: Tensor) -> Iterator[Tensor]:
        x = inputs.new_zeros(len(inputs), n)
        for u in inputs.unbind(1):
            x = x + dt * (x @ a.T + x.tanh() @ w.T + u @ b.T)
            yield x

    target = torch.stack(list(states(*teacher)))
    original = WAYS[way].start(student[0][None]).requires_grad_()
    others = [part.requires_grad_() for part in student[1:]]
    steps = getattr(torch.optim, optimizer)([original, *others], lr=lr)
    for _ in range(budget):
        steps.zero_grad()
        found = torch.stack(list(states(WAYS[way].weight(original)[0], *others)))
        loss = (found - target).square().mean()
        loss.backward()
        steps.step()
        with torch.no_grad():
            WAYS[way].after_step(original)
    return loss.detach()
