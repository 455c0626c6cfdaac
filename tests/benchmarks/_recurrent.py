"""A real task: a continuous-time RNN learns another's output."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.benchmarks._ways import WAYS, diagonal


def recurrent_errors(way: str, decay: float, lr: float, budget: int, seed: int) -> Tensor:
    """What Adam leaves of the error, for each of four networks.

    Args:
        way: how to keep the diagonal of A negative.
        decay: the other network's entries there are about minus this.
        lr: the learning rate.
        budget: how many steps.
        seed: draws both networks.
    """
    generator = torch.Generator().manual_seed(seed)
    networks, n, dt = 4, 16, 0.1

    def draw(rows: int) -> Tensor:
        return torch.randn(networks, rows, n, generator=generator) / math.sqrt(n)

    inputs = torch.randn(15, networks, 32, n, generator=generator)
    a, *others = (draw(n) for _ in range(6))
    teacher, student = (a - decay * torch.eye(n), *others[:2]), others[2:]
    diagonal(student[0]).copy_(-diagonal(student[0]).abs())

    def states(a: Tensor, w: Tensor, b: Tensor) -> Iterator[Tensor]:
        x = inputs.new_zeros(inputs.shape[1:])
        for u in inputs:
            x = x + dt * (x @ a.mT + x.tanh() @ w.mT + u @ b.mT)
            yield x

    target = torch.stack(list(states(*teacher)))
    model = WAYS[way].model(student[0])
    rest = [part.requires_grad_() for part in student[1:]]
    optimizer = torch.optim.Adam([*model.parameters(), *rest], lr=lr)
    for _ in range(budget):
        optimizer.zero_grad()
        found = torch.stack(list(states(model.weight, *rest)))
        errors = (found - target).square().mean((0, 2, 3))
        errors.sum().backward()
        optimizer.step()
        WAYS[way].after_step(model)
    return errors.detach()
