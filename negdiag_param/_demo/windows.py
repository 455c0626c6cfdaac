"""Which stretches of the data are fitted."""

from negdiag_param._demo.read import SHORTEST

USUAL = 8  # rows: seven growth figures for three unknowns
LENGTHS = 8
MANY = 40  # windows of a length


def windows(rows: int, length: int) -> list[range]:
    """The stretches of so many rows that at least one more row follows: all, or evenly spread."""
    every = -(-(rows - length) // MANY)
    return [range(start, start + length) for start in range(0, rows - length, every)]


def lengths(rows: int) -> list[int]:
    """The lengths that are tried unless told: at most eight, up to three quarters of the data."""
    least = min(USUAL, rows - 1)
    most = max(least, rows * 3 // 4)
    gaps = min(LENGTHS - 1, most - least)
    return [least + (most - least) * i // max(gaps, 1) for i in range(gaps + 1)]


def check(rows: int, window: int | None, horizon: int | None) -> None:
    """Refuses windows and horizons that the data are too short for.

    Raises:
        ValueError: saying what would do.
    """
    if window is not None and not SHORTEST <= window < rows:
        raise ValueError(
            f"argument --window: expected from {SHORTEST} to {rows - 1} of the {rows} rows, "
            f"got {window}"
        )
    left = rows - (window or lengths(rows)[0])
    if horizon is not None and not 1 <= horizon <= left:
        raise ValueError(
            f"argument --horizon: expected from 1 to {left}, the rows after the first window, "
            f"got {horizon}"
        )
