"""What is printed: a column for each comparison, and words that follow from the figures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from statistics import median

from negdiag_param._demo.fit import STEPS, Comparison

SAME = 0.01  # errors that differ by no more than this part are the same
CHANCE = 0.05


def votes(result: Comparison, rival: str) -> tuple[int, int]:
    """At how many last rows the constrained forecasts are better than those of a rival, and worse.

    Windows that end at the same row forecast the same rows: they have one vote together.
    """
    balance: Counter[int] = Counter()
    errors = zip(*(result.errors[name].tolist() for name in ("constrained", rival)), strict=True)
    for window, (ours, theirs) in zip(result.windows, errors, strict=True):
        if ours != theirs and abs(ours - theirs) > SAME * min(ours, theirs):
            balance[window.stop] += 1 if ours < theirs else -1
    return sum(n > 0 for n in balance.values()), sum(n < 0 for n in balance.values())


def sign_test(better: int, worse: int) -> float:
    """How probable a division at least so uneven is where both sides are as likely."""
    tail = sum(comb(better + worse, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / float(2 ** (better + worse)))


def table(results: Sequence[Comparison]) -> Iterator[str]:
    """A column for each result."""

    def row(label: str, cells: Sequence[object]) -> str:
        return (f"{label:<24}" + "".join(f"{cell:>18}" for cell in cells)).rstrip()

    yield row("", [f"{r.data.name[-16:]} " for r in results])
    yield row("rates explained by", [f"{r.kind} " for r in results])
    yield "-" * (24 + 18 * len(results))
    yield row("windows", [f"{len(r.windows)} " for r in results])
    yield row("  of a wrong sign, free", [f"{int(r.wrong.sum())} " for r in results])
    lengths = [[len(r.windows[i]) for i in r.wrong.nonzero()] for r in results]
    yield row("  their numbers of rows", [f"{min(n)} to {max(n)} " if n else "" for n in lengths])
    yield "constrained, better - worse than (one vote for all windows that end at the same row)"
    for rival in list(results[0].errors)[1:]:
        cells = []
        for pair in (votes(r, rival) for r in results):
            cells.append("{} - {}".format(*pair) + ("*" if sign_test(*pair) <= CHANCE else " "))
        yield row(f"  {rival}", cells)
    yield "median (worst) error of the windows of a wrong sign"
    for name in results[0].errors:
        chosen = [r.errors[name][r.wrong] for r in results]
        cells = [f"{median(e.tolist()):.3g} ({e.max():.3g}) " if len(e) else "" for e in chosen]
        yield row(f"  {name}", cells)


def notes(results: Sequence[Comparison], margin: float) -> Iterator[str]:
    """What the figures say, and what they do not say."""
    yield "* p <= 0.05 in a sign test, which takes votes as independent; neighbours share rows"
    for result in results:
        yield f"{result.data.name}, {result.kind}: {verdict(*votes(result, 'free'))}"
    for name in ("clamped by hand", "wrong signs dropped"):
        gaps = [(r.weights[name] - r.weights["constrained"]).abs().max() for r in results]
        yield f"weights, constrained and {name}, differ by at most {max(gaps):.1g}"
    kept = "yes" if all(result.kept for result in results) else "NO"
    yield f"diagonals negative and at most {0 - margin:g} after each of {STEPS} steps: {kept}"
    ran_off = sum(int(result.errors["constrained"].isinf().sum()) for result in results)
    yield f"constrained forecasts that ran off to infinity (negative is not stable): {ran_off}"


def verdict(better: int, worse: int) -> str:
    """What the votes against the free forecasts say."""
    if better == worse == 0:
        return "neither better nor worse than free"
    chance = sign_test(better, worse)
    said = "may be chance" if chance > CHANCE else "is beyond chance, were votes independent"
    return f"{better} better than free, {worse} worse: p = {chance:.2g} {said}"
