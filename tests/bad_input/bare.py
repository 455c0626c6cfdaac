"""The classes on their own, and through PyTorch's own door."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal
from tests.bad_input.checkpoints import MARK, MARKS, OTHERS, loading, written_by
from tests.bad_input.options import CLASSES, UNFIT
from tests.bad_input.table import (
    FLOATING,
    MATRIX,
    NOT_DENSE,
    NOT_FLOATING,
    ONES,
    Bad,
    Table,
    holding,
    quietly,
)
from tests.support.modules import linear
from tests.support.tables import BUILT_IN

LAZY = "expected an initialized tensor, got UninitializedParameter; run the lazy module once first"
FINITE = f"a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}"
# What has no diagonal, and what is said of it.
NO_WEIGHT: dict[str, tuple[Any, str]] = {
    "none": (None, "expected a tensor, got NoneType"),
    "a number": (-1.0, "expected a tensor, got float"),
    "lists": ([[-1.0]], "expected a tensor, got list"),
    "a lazy parameter": (nn.UninitializedParameter(), LAZY),
    **{k: (t, f"expected a dense tensor, got {found}") for k, (t, found) in NOT_DENSE.items()},
}
NO_FLOATS: dict[str, tuple[Tensor, str]] = {
    label: (quietly(lambda dtype=dtype: ONES.to(dtype)), f"shape (3, 3), {dtype}")
    for label, dtype in NOT_FLOATING.items()
}
BAD_WEIGHTS = {
    "NaN": (ONES * math.nan, {}, FINITE),
    "infinity": (ONES * -math.inf, {}, FINITE),
    "infeasible entries": (
        ONES,
        {"infeasible": "error"},
        f"a negative diagonal, got 3 of 3 entries that are not, the largest 1; got {MATRIX}",
    ),
    "entries above the margin": (
        -ONES,
        {"infeasible": "error", "margin": 1.5},
        f"a diagonal of at most -1.5, got 3 of 3 entries that are not, the largest -1; got "
        f"{MATRIX}",
    ),
}
# Which parametrize asks for a shape, before it asks us anything.
PYTORCHS_OWN = ("a lazy parameter", "nested")
POLICY = "infeasible: expected one of ('warn', 'reflect', 'error'), got "


def on(module: nn.Module, **options: Any) -> nn.Module:
    """The stock door."""
    parametrization = NegExpDiagonal(**options)
    return parametrize.register_parametrization(module, "weight", parametrization)


def bare(**options: Any) -> nn.Module:
    return on(linear(-2.0), **options)


def assigning(value: Any) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "weight", value)


def calling(name: str, call: str, bad: Any, message: str) -> Bad:
    return Bad(CLASSES[name], lambda made: getattr(made, call)(bad), TypeError, message)


def asked_of(name: str, table: dict[str, Any]) -> list[tuple[str, Any]]:
    """All of a table for a ready class and for a user's; some of it for those that are alike."""
    everything = name in ("NegExpDiagonal", "NegativeDiagonal")
    return [row for row in table.items() if everything or row[0] in ("lists", "sparse", "integers")]


ROWS: Table = {}
for name, cls in CLASSES.items():
    for call in ("forward", "right_inverse", "entries"):
        for label, (bad, message) in asked_of(name, NO_WEIGHT):
            ROWS[f"{name}.{call}: {label}"] = calling(name, call, bad, f"weight: {message}")
        for label, (bad, found) in asked_of(name, NO_FLOATS):
            message = f"weight: expected {FLOATING}, got {found}"
            ROWS[f"{name}.{call}: {label}"] = calling(name, call, bad, message)
    for label, (weight, options, message) in BAD_WEIGHTS.items():
        ROWS[f"{name}.right_inverse: {label}"] = Bad(
            lambda cls=cls, options=options: cls(**options),
            lambda made, weight=weight: made.right_inverse(weight),
            ValueError,
            f"weight: expected {message}",
        )
    for bad, error, found in (("ignore", ValueError, "'ignore'"), (3, TypeError, "int")):
        ROWS[f"{name}.right_inverse: the policy {bad}"] = Bad(
            cls,
            lambda made, bad=bad: made.right_inverse(-ONES, bad),
            error,
            f"{POLICY}{found}",
        )
for name in [cls.__name__ for cls in BUILT_IN.values()]:
    for call in ("map", "inverse"):
        for label, (bad, message) in asked_of(name, NO_WEIGHT):
            ROWS[f"{name}.{call}: {label}"] = calling(name, call, bad, message)
        for label, (bad, _) in asked_of(name, NO_FLOATS):
            message = f"expected {FLOATING}, got {bad.dtype}"
            ROWS[f"{name}.{call}: {label}"] = calling(name, call, bad, message)
for label, (mark, message) in MARKS.items():
    ROWS[f"NegExpDiagonal.set_extra_state: {label}"] = Bad(
        NegExpDiagonal,
        lambda made, mark=mark: made.set_extra_state(mark),
        ValueError,
        f"weight: {message}",
    )
    ROWS[f"NegExpDiagonal.load_state_dict: a mark that is {label}"] = Bad(
        bare, loading({MARK: mark}), ValueError, f"weight: {message}"
    )
for label, (options, found) in OTHERS.items():
    ROWS[f"NegExpDiagonal.load_state_dict: the mark of {label}"] = Bad(
        bare,
        loading({MARK: written_by(**options)[MARK]}),
        ValueError,
        f"weight: expected a checkpoint of exp(margin=0.0), found one of {found}",
    )
for label, (tensor, message) in NO_WEIGHT.items():
    if isinstance(tensor, Tensor) and label not in PYTORCHS_OWN:
        ROWS[f"register_parametrization: {label}"] = Bad(
            lambda tensor=tensor: holding(tensor), on, TypeError, f"weight: {message}"
        )
for label, (tensor, found) in NO_FLOATS.items():
    ROWS[f"register_parametrization: {label}"] = Bad(
        lambda tensor=tensor: holding(tensor),
        on,
        TypeError,
        f"weight: expected {FLOATING}, got {found}",
    )
for label, (options, message) in UNFIT.items():
    ROWS[f"register_parametrization: {label}"] = Bad(
        linear,
        lambda module, options=options: on(module, **options),
        ValueError,
        f"weight: expected {message}; got {MATRIX}",
    )
for label, (weight, options, message) in BAD_WEIGHTS.items():
    ROWS[f"register_parametrization: {label}"] = Bad(
        lambda weight=weight: holding(weight),
        lambda module, options=options: on(module, **options),
        ValueError,
        f"weight: expected {message}",
    )
    ROWS[f"a bare layer.weight: {label}"] = Bad(
        lambda options=options: bare(**options),
        assigning(weight),
        ValueError,
        f"weight: expected {message}",
    )
for label, (value, message) in NO_WEIGHT.items():
    if label not in PYTORCHS_OWN:
        ROWS[f"a bare layer.weight: {label}"] = Bad(
            bare, assigning(value), TypeError, f"weight: {message}"
        )
for label, (value, found) in NO_FLOATS.items():
    ROWS[f"a bare layer.weight: {label}"] = Bad(
        bare, assigning(value), TypeError, f"weight: expected {FLOATING}, got {found}"
    )
