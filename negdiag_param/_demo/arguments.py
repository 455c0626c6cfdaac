"""The options of the command line, each checked when it is read."""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from negdiag_param import register_negative_diagonal
from negdiag_param._demo.read import SHORTEST, number, short, whole

T = TypeVar("T", int, float)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m negdiag_param",
        description="Fit a predator-prey community to windows of the Hudson Bay pelts, with and "
        "without a negative diagonal on its interaction matrix, and forecast the rows after them.",
    )
    add = result.add_argument
    add(
        "--window",
        metavar="ROWS",
        type=checked(whole, SHORTEST, 10**6),
        help="fit windows of so many rows and list each (default: eight lengths, summed up)",
    )
    add(
        "--horizon",
        metavar="ROWS",
        type=checked(whole, 1, 10**6),
        help="forecast so many rows, or what is left of them (default: 5)",
    )
    add(
        "--margin",
        metavar="RATE",
        type=checked(number, 0, 10**6),
        default=0.0,
        help="crowding costs each species at least so much growth per year, at the mean counts of "
        "a window (default: 0)",
    )
    add("--map", metavar="NAME", type=map_name, help="default: that of the library")
    add("--steps", type=checked(whole, 1, 10**6), default=500, help="default: %(default)s")
    add("--seed", type=checked(whole, 0, 2**32 - 1), default=0, help="default: %(default)s")
    add("--csv", metavar="FILE", help="read this file, with a header: year,prey,predator")
    add("--plot", metavar="FILE.png", help="draw data, forecasts and training; needs matplotlib")
    return result


def checked(convert: Callable[[str], T], least: float, most: float) -> Callable[[str], T]:
    """A converter that takes what lies in a range."""

    def converted(text: str) -> T:
        try:
            value = convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {short(text)}")
        return value

    return converted


def map_name(text: str) -> str:
    """The name of a map that the library knows."""
    options: dict[str, Any] = {"map": text}
    try:
        register_negative_diagonal(nn.Linear(1, 1), **options)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("map: ")) from None
    return text
