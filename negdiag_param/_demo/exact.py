"""What the training should arrive at: least squares with a bound on the self-interactions."""

import torch
from torch import Tensor


def least_squares(inputs: Tensor, targets: Tensor, known: Tensor, margin: float | None) -> Tensor:
    """The smallest sums of squared residuals that communities can have.

    Args:
        inputs: counts of shape (community, time, species).
        targets: growth, of the same shape.
        known: one for each time that counts, zero for padding; shape (community, time, 1).
        margin: a self-interaction is at most ``-margin``; None leaves it free.

    Returns:
        One sum for each community.
    """
    design = torch.cat([torch.ones_like(known), inputs], 2) * known
    species = range(inputs.shape[2])
    total = torch.zeros(len(inputs), dtype=inputs.dtype)
    for i in species:
        target = targets[:, :, i : i + 1]
        solution = torch.linalg.lstsq(design, target).solution
        squares = (design @ solution - target).square().sum((1, 2))
        if margin is not None:
            # With a single bound, the best is either free or on the bound.
            others = design[:, :, [0, *(1 + j for j in species if j != i)]]
            rest = target + margin * design[:, :, 1 + i : 2 + i]
            bounded = torch.linalg.lstsq(others, rest).solution
            on_bound = (others @ bounded - rest).square().sum((1, 2))
            squares = torch.where(solution[:, 1 + i, 0] > -margin, on_bound, squares)
        total += squares
    return total
