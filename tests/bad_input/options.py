"""Options of the wrong type or out of range, at every door that takes them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from negdiag_param import NegExpDiagonal, NegSoftplusDiagonal, register_negative_diagonal
from tests.bad_input.table import MATRIX, Bad, Table, Values, given
from tests.bad_input.tensors import CLASSES, bare
from tests.support.modules import OwnSquareDiagonal, linear
from tests.support.tables import neg_softplus_transform

TYPE, SHOWN = "{type.__name__}", "{bad!r}"
HUGE, NOT_NEGATIVE = 10**400, "a finite number that is not negative"
NUMBERS = ["1", None, True]
TAPS, POLICIES = "('all', 'center')", "('warn', 'reflect', 'error')"
DOMINANCE = "('rows', 'columns', 'scaled')"
NO_PAIRS = [0, "01", (0.0, 1), (True, False), (0, None), {0, 1}, torch.tensor([0, 1])]


def of_options(*rows: tuple[str, type[Exception], str, str, list[Any]]) -> Values:
    """For each option what it has to be, how the error tells what it is, and what it may not be."""
    return {
        f"{name}={bad!r:.20}": (
            {name: bad},
            error,
            f"{name}: expected {wanted}, got {got.format(bad=bad, type=type(bad))}",
        )
        for name, error, wanted, got, values in rows
        for bad in values
    }


OPTIONS = of_options(
    ("margin", TypeError, "a number", TYPE, [*NUMBERS, 1j, [0.1], torch.tensor(0.1)]),
    ("margin", ValueError, NOT_NEGATIVE, SHOWN, [math.nan, math.inf, -0.1]),
    ("margin", ValueError, NOT_NEGATIVE, "1000...", [HUGE]),
    ("dims", TypeError, "a tuple of two integers or ()", SHOWN, NO_PAIRS),
    ("dims", ValueError, "two dimensions or none", SHOWN, [(0,), (0, 1, 2)]),
    ("taps", ValueError, f"one of {TAPS}", SHOWN, ["centre"]),
    ("taps", TypeError, f"one of {TAPS}", TYPE, [None, ["all"]]),
    ("blocks", TypeError, "an integer", TYPE, [0.5, "2", True, torch.tensor(3)]),
    ("blocks", ValueError, "at least 1", SHOWN, [0, -1]),
    ("dominance", ValueError, f"one of {DOMINANCE}", SHOWN, ["row"]),
    ("dominance", TypeError, f"one of {DOMINANCE}", TYPE, [True, ["rows"]]),
    ("infeasible", ValueError, f"one of {POLICIES}", SHOWN, ["ignore"]),
    ("infeasible", TypeError, f"one of {POLICIES}", TYPE, [None, True]),
    ("cache_in_eval", TypeError, "True or False", SHOWN, ["no", 1, None]),
)
# Of the only map that has a constant.
CONSTANT = of_options(
    ("beta", TypeError, "a number", TYPE, NUMBERS),
    ("beta", ValueError, "a number between 1e-6 and 1e6", SHOWN, [0.0, -1.0, math.nan]),
    ("beta", ValueError, "a number between 1e-6 and 1e6", "1000...", [HUGE]),
)
KNOWN = "margin, dims, taps, blocks, dominance, infeasible, cache_in_eval"
UNKNOWN = of_options(
    *(
        (name, TypeError, f"an option of NegExpDiagonal, which are {KNOWN}", f"{name}=0.1", [0.1])
        for name in ("margins", "beta")
    )
)
# What is fit in itself, but not for a Linear(3, 3).
UNFIT: Values = {
    str(options): (options, ValueError, f"weight: expected {message}; got {MATRIX}")
    for options, message in [
        ({"dims": (0, 2)}, "dims within 2 dimensions, got dims=(0, 2)"),
        ({"dims": (-3, 0)}, "dims within 2 dimensions, got dims=(-3, 0)"),
        ({"dims": (1, 1)}, "two different dims, got dims=(1, 1)"),
        ({"dims": (1, -1)}, "two different dims, got dims=(1, -1)"),
        ({"blocks": 2}, "blocks to divide the 3 rows of dimension 0, got blocks=2"),
        ({"dims": (), "blocks": 3}, "blocks=1 where every entry is diagonal, got blocks=3"),
        (
            {"taps": "center"},
            "kernel dimensions after dims=(0, 1) for taps='center', found none",
        ),
        (
            {"margin": 1e39},
            "a margin that torch.float32 can keep clear of its largest value, got margin=1e+39",
        ),
    ]
}
SQUARE = "a square matrix for dominance='rows', got"
VECTOR = "a matrix for dominance='rows', got a tensor of which every entry is diagonal"
CENTER = "taps='center' for dominance='rows' of a convolution, got taps='all', which is not the "
BETWEEN = "an odd kernel size where the dilation is above 1 for taps='center', got kernel_size=(4,)"
LARGE = "a margin that torch.float16 can keep clear of its largest value, got margin=70000.0"
OF_ROWS = {"dominance": "rows"}
# What is fit in itself, but not for the layer.
OTHER_LAYERS: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (
        lambda: nn.Linear(4, 3),
        OF_ROWS,
        f"{SQUARE} 3 rows and 4 columns; got shape (3, 4), torch.float32",
    ),
    (
        lambda: nn.Linear(2, 6),  # the inputs of gates
        {**OF_ROWS, "blocks": 2},
        f"{SQUARE} 3 rows and 2 columns in each of 2 blocks; got shape (6, 2), torch.float32",
    ),
    (lambda: nn.LayerNorm(3), OF_ROWS, f"{VECTOR}; got shape (3,), torch.float32"),
    (lambda: nn.Linear(3, 3), {**OF_ROWS, "dims": ()}, f"{VECTOR}; got {MATRIX}"),
    (
        lambda: nn.Conv1d(3, 3, 3),
        OF_ROWS,
        f"{CENTER}diagonal of its matrix; shape (3, 3, 3), torch.float32",
    ),
    (
        lambda: nn.Conv1d(4, 8, 3, groups=2),
        {**OF_ROWS, "taps": "center"},
        f"{SQUARE} 4 rows and 2 columns in each of 2 blocks; got shape (8, 2, 3), torch.float32",
    ),
    (
        lambda: nn.Conv1d(2, 2, 4, dilation=2, padding="same"),
        {"taps": "center"},
        f"{BETWEEN}, dilation=(2,), whose main diagonal no tap reaches",
    ),
    (
        lambda: linear(dtype=torch.float16),
        {"margin": 7e4},
        f"{LARGE}; got shape (3, 3), torch.float16",
    ),
]


def registering(map: Any) -> Callable[[nn.Module, dict[str, Any]], nn.Module]:
    return lambda module, options: register_negative_diagonal(module, map=map, **options)


def making(cls: type) -> Callable[[nn.Module, dict[str, Any]], object]:
    return lambda _, options: cls(**options)


SAMPLE = {label: OPTIONS[label] for label in ("margin='1'", "dims=(0, 1, 2)")}
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
    "NegExpDiagonal: dominance of an unknown matrix": Bad(
        lambda: NegExpDiagonal(dominance="rows"),
        lambda made: made.right_inverse(torch.ones(3, 3, 3)),
        ValueError,
        "weight: expected taps='center' for a convolution, or dims for a batch of matrices, for "
        "dominance='rows', got neither; got shape (3, 3, 3), torch.float32",
    ),
    **{
        f"{HELPER}: {make()!r}, {options}": Bad(
            make,
            lambda module, o=options: register_negative_diagonal(module, **o),
            ValueError,
            f"weight: expected {message}",
        )
        for make, options, message in OTHER_LAYERS
    },
}
for name, cls in CLASSES.items():
    ROWS |= given(name, linear, making(cls), OPTIONS if cls is NegExpDiagonal else SAMPLE)
for call in ("forward", "right_inverse", "entries"):
    use = lambda _, o, call=call: getattr(NegExpDiagonal(**o), call)(-torch.ones(3, 3))  # noqa: E731
    ROWS |= given(f"NegExpDiagonal.{call}", linear, use, UNFIT)
