"""What the figures say, and what they do not: every sentence follows from them."""

import math
from collections.abc import Iterable, Iterator
from statistics import fmean, median

import torch

from negdiag_param._demo.data import HUDSON_BAY, Observations
from negdiag_param._demo.fit import Fit
from negdiag_param._demo.report import error, many
from negdiag_param._demo.score import Score

VERDICTS = {1: "wins", 0: "neither wins nor loses", -1: "loses"}


def notes(data: Observations, free: Fit, constrained: Fit, score: Score) -> Iterator[str]:
    """The verdict, what it rests on, and what the constraint does not promise."""
    late = int((~free.converged).sum() + (~constrained.converged).sum())
    so_far = " so far" if late else ""
    yield f"Forecasts{so_far}: {verdict(score)} {dispersion(free, score)}"
    yield f"In the sample{so_far}: {in_sample(data, free, constrained)}"
    yield f"Training: {training(constrained, late)}"
    yield (
        "A negative diagonal is not stability: [[-1, 2], [2, -1]] has the eigenvalue +1. The "
        "eigenvalue above is the one with the largest real part where growth is zero; below zero "
        "means stable, near there."
    )
    if data is HUDSON_BAY:
        yield (
            "The published figures (Carpenter 2018) are of a fit to whole trajectories, without "
            "self-interactions: compare their size, not their digits."
        )


def verdict(score: Score) -> str:
    """Whether the constraint wins, and by how much."""
    signs = score.signs
    if not any(signs):
        return "the constraint changes none of them by 1 % or more."
    pair = score.constrained.tolist(), score.free.tolist()
    means, medians = ([error(of(errors)) for errors in pair] for of in (fmean, median))
    return (
        f"the constraint {VERDICTS[score.verdict]}. Of {many(len(signs), 'window')} it makes "
        f"{signs.count(1)} better and {signs.count(-1)} worse; the mean RMSE is {means[0]} with "
        f"and {means[1]} without it, the median {medians[0]} and {medians[1]}."
    )


def dispersion(free: Fit, score: Score) -> str:
    """How far the verdict carries."""
    signs = torch.tensor(score.signs)
    positive = (free.interactions[1:].diagonal(dim1=1, dim2=2) >= 0).any(1)
    said = "Without it, too, every self-interaction is negative"
    if positive.any():
        windows = many(int(positive.sum()), "window")
        said = f"Without it a self-interaction is positive in {windows}"
        if not positive.all() and not signs[~positive].any():
            said += ", and the others stay the same"
    away = [int(errors.isinf().sum()) for errors in (score.free, score.constrained)]
    if any(away):
        said += f". Forecasts that run off to infinity: {away[0]} without it, {away[1]} with it"
    if len(signs) > 1:
        said += ". Windows overlap: they are not so many independent trials"
    return f"{said}."


def in_sample(data: Observations, free: Fit, constrained: Fit) -> str:
    """What the constraint costs, and what the free fit would mean."""
    total = float(data.growth.square().sum())
    before, after = float(free.ssr[0]), float(constrained.ssr[0])
    cost = (after - before) / max(before, 1e-6 * total) if total else 0.0
    said = "the constraint costs nothing."
    if cost >= 0.0005:
        said = f"the constraint costs {100 * cost:.1f} % of SSR."
    selves = free.interactions[0].diagonal().tolist()
    wrong = [name for name, value in zip(data.species, selves, strict=True) if value >= 0]
    if wrong:
        said += (
            f" Without it the self-interaction of the {join(wrong)} is positive, as if crowding "
            f"helped.{escape(data, free)}"
        )
    return said


def training(constrained: Fit, late: int) -> str:
    """Whether the training arrived, and where the diagonal was on its way."""
    fits, steps = len(constrained.ssr), len(constrained.diagonals) - 1
    said = "every fit is within 0.1 % of exact least squares."
    if late:
        said = (
            f"not finished, {late} of {2 * fits} fits being more than 0.1 % above exact least "
            f"squares; take more --steps."
        )
    if constrained.kept:
        bound = "negative, by the margin or more," if constrained.margin else "negative"
        said += (
            f" The constrained diagonals were {bound} at the start and after each of the {steps} "
            f"steps, in all {fits} fits."
        )
    return said


def join(words: Iterable[str]) -> str:
    """The words as prose: one, one and two, or one, two and three."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def escape(data: Observations, fit: Fit) -> str:
    """How soon the prey would reach infinity without the predator, if it would."""
    growth = float(fit.growth[0, 0])
    crowding = float(fit.interactions[0, 0, 0] * data.counts[0, 0])
    if crowding <= 0 or growth + crowding <= 0 or growth == 0:
        return ""
    years = math.log1p(growth / crowding) / growth
    return f" Left alone, the {data.species[0]} would reach infinity within {years:.1f} years."
