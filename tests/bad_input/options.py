"""Options of the wrong type or out of range, at every door that takes them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from negdiag_param import NegExpDiagonal, NegSoftplusDiagonal, register_negative_diagonal
from tests.bad_input.table import MATRIX, Bad, Table, Values, given
from tests.bad_input.weights import CLASSES, bare
from tests.support.modules import OwnSquareDiagonal, linear
from tests.support.tables import neg_softplus_transform

Said = Callable[[Any], str]


def of_option(name: str, values: dict[str, Any], error: type[Exception], said: Said) -> Values:
    return {
        f"{name}={label}": ({name: bad}, error, f"{name}: expected {said(bad)}")
        for label, bad in values.items()
    }


def named(message: str) -> Said:
    return lambda bad: f"{message}, got {type(bad).__name__}"


def shown(message: str) -> Said:
    return lambda bad: f"{message}, got {bad!r}" if bad != HUGE else f"{message}, got 1000..."


HUGE = 10**400
ONE, HALF, BOTH = torch.tensor(3), torch.tensor(0.1), torch.tensor([0, 1])
NUMBERS = {"text": "1", "none": None, "true": True}
PAIR = "a tuple of two integers or ()"
DOMINANCE = "one of ('rows', 'columns', 'scaled')"
POLICIES = "one of ('warn', 'reflect', 'error')"
OPTIONS: Values = {
    **of_option(
        "margin",
        NUMBERS | {"complex": 1j, "list": [0.1], "tensor": HALF},
        TypeError,
        named("a number"),
    ),
    **of_option(
        "margin",
        {"NaN": math.nan, "infinite": math.inf, "negative": -0.1, "beyond all floats": HUGE},
        ValueError,
        shown("a finite number that is not negative"),
    ),
    **of_option(
        "dims",
        {
            "an integer": 0,
            "text": "01",
            "floats": (0.0, 1),
            "truth values": (True, False),
            "half given": (0, None),
            "a set": {0, 1},
        },
        TypeError,
        shown(PAIR),
    ),
    **of_option("dims", {"a tensor": BOTH}, TypeError, lambda bad: f"{PAIR}, got {bad!r}"),
    **of_option(
        "dims", {"one": (0,), "three": (0, 1, 2)}, ValueError, shown("two dimensions or none")
    ),
    **of_option("taps", {"unknown": "centre"}, ValueError, shown("one of ('all', 'center')")),
    **of_option(
        "taps", {"none": None, "list": ["all"]}, TypeError, named("one of ('all', 'center')")
    ),
    **of_option(
        "blocks",
        {"half": 0.5, "text": "2", "true": True, "tensor": ONE},
        TypeError,
        named("an integer"),
    ),
    **of_option("blocks", {"none": 0, "negative": -1}, ValueError, shown("at least 1")),
    **of_option("dominance", {"unknown": "row"}, ValueError, shown(DOMINANCE)),
    **of_option("dominance", {"true": True, "list": ["rows"]}, TypeError, named(DOMINANCE)),
    **of_option("infeasible", {"unknown": "ignore"}, ValueError, shown(POLICIES)),
    **of_option("infeasible", {"none": None, "true": True}, TypeError, named(POLICIES)),
    **of_option(
        "cache_in_eval", {"text": "no", "one": 1, "none": None}, TypeError, shown("True or False")
    ),
}
# Of the only map that has a constant.
CONSTANT: Values = {
    **of_option("beta", NUMBERS, TypeError, named("a number")),
    **of_option(
        "beta",
        {"zero": 0.0, "negative": -1.0, "NaN": math.nan, "huge": HUGE},
        ValueError,
        shown("a number between 1e-6 and 1e6"),
    ),
}
KNOWN = "margin, dims, taps, blocks, dominance, infeasible, cache_in_eval"
UNKNOWN: Values = {
    f"{label} option": (
        {name: 0.1},
        TypeError,
        f"{name}: expected an option of NegExpDiagonal, which are {KNOWN}, got {name}=0.1",
    )
    for label, name in {"a misspelt": "margins", "another map's": "beta"}.items()
}
# What is fit in itself, but not for a Linear(3, 3).
UNFIT: Values = {
    label: (options, ValueError, f"weight: expected {message}; got {MATRIX}")
    for label, options, message in [
        ("dims out of range", {"dims": (0, 2)}, "dims within 2 dimensions, got dims=(0, 2)"),
        ("dims below range", {"dims": (-3, 0)}, "dims within 2 dimensions, got dims=(-3, 0)"),
        ("one dim twice", {"dims": (1, 1)}, "two different dims, got dims=(1, 1)"),
        ("one dim under two names", {"dims": (1, -1)}, "two different dims, got dims=(1, -1)"),
        (
            "blocks that do not divide",
            {"blocks": 2},
            "blocks to divide the 3 rows of dimension 0, got blocks=2",
        ),
        (
            "blocks of all entries",
            {"dims": (), "blocks": 3},
            "blocks=1 where every entry is diagonal, got blocks=3",
        ),
        (
            "the center of a matrix",
            {"taps": "center"},
            "kernel dimensions after dims=(0, 1) for taps='center', found none",
        ),
        (
            "a margin beyond float32",
            {"margin": 1e39},
            "a margin that torch.float32 can keep clear of its largest value, got margin=1e+39",
        ),
    ]
}


# Where there is no square matrix to be dominated: the layer, options, and what is said.
NOT_SQUARE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "a wide matrix": (
        lambda: nn.Linear(4, 3),
        {},
        "a square matrix for dominance='rows', got 3 rows and 4 columns; got shape (3, 4), "
        "torch.float32",
    ),
    "the inputs of gates": (
        lambda: nn.Linear(2, 6),
        {"blocks": 2},
        "a square matrix for dominance='rows', got 3 rows and 2 columns in each of 2 blocks; got "
        "shape (6, 2), torch.float32",
    ),
    "a vector": (
        lambda: nn.LayerNorm(3),
        {},
        "a matrix for dominance='rows', got a tensor of which every entry is diagonal; got shape "
        "(3,), torch.float32",
    ),
    "all entries": (
        lambda: nn.Linear(3, 3),
        {"dims": ()},
        f"a matrix for dominance='rows', got a tensor of which every entry is diagonal; got "
        f"{MATRIX}",
    ),
    "all taps": (
        lambda: nn.Conv1d(3, 3, 3),
        {},
        "taps='center' for dominance='rows' of a convolution, got taps='all', which is not the "
        "diagonal of its matrix; shape (3, 3, 3), torch.float32",
    ),
    "more outputs than inputs": (
        lambda: nn.Conv1d(4, 8, 3, groups=2),
        {"taps": "center"},
        "a square matrix for dominance='rows', got 4 rows and 2 columns in each of 2 blocks; got "
        "shape (8, 2, 3), torch.float32",
    ),
}


def registering(map: Any) -> Callable[[nn.Module, dict[str, Any]], nn.Module]:
    return lambda module, options: register_negative_diagonal(module, map=map, **options)


def making(cls: type) -> Callable[[nn.Module, dict[str, Any]], object]:
    return lambda _, options: cls(**options)


SAMPLE = {label: OPTIONS[label] for label in ("margin=text", "dims=three")}
HELPER = "register_negative_diagonal"
ROWS: Table = {
    **given(HELPER, linear, registering("softplus"), OPTIONS),
    **given(f"{HELPER}, a class", linear, registering(OwnSquareDiagonal), SAMPLE),
    **given(f"{HELPER}, an instance", linear, registering(NegExpDiagonal()), SAMPLE),
    **given(f"{HELPER}, a transform", linear, registering(neg_softplus_transform()), SAMPLE),
    **given(HELPER, linear, registering("exp"), UNKNOWN | UNFIT),
    **given("register_parametrization", linear, lambda m, o: bare(m, **o), UNFIT),
    **given("NegSoftplusDiagonal", linear, making(NegSoftplusDiagonal), CONSTANT),
    "NegExpDiagonal: a misspelt option": Bad(
        linear,
        lambda _: NegExpDiagonal(margins=0.1),
        TypeError,
        "...__init__() got an unexpected keyword argument 'margins'...",
    ),
}
for label, (make, options, message) in NOT_SQUARE.items():
    ROWS[f"{HELPER}: dominance of {label}"] = Bad(
        make,
        lambda module, o=options: register_negative_diagonal(module, dominance="rows", **o),
        ValueError,
        f"weight: expected {message}",
    )
ROWS["NegExpDiagonal: dominance of an unknown matrix"] = Bad(
    lambda: NegExpDiagonal(dominance="rows"),
    lambda made: made.right_inverse(torch.ones(3, 3, 3)),
    ValueError,
    "weight: expected taps='center' for a convolution, or dims for a batch of matrices, for "
    "dominance='rows', got neither; got shape (3, 3, 3), torch.float32",
)
for name, cls in CLASSES.items():
    values = OPTIONS if cls is NegExpDiagonal else SAMPLE
    ROWS |= given(name, linear, making(cls), values)
for call in ("forward", "right_inverse", "entries"):
    use = lambda _, options, call=call: getattr(NegExpDiagonal(**options), call)(-torch.ones(3, 3))  # noqa: E731
    ROWS |= given(f"NegExpDiagonal.{call}", linear, use, UNFIT)
