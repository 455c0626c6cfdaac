"""Checkpoints that are of another map, damaged, or none; nothing of them may be loaded."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import NegativeDiagonal, NegExpDiagonal, register_negative_diagonal
from tests.bad_input.table import (
    FLOATING,
    MATRIX,
    NOT_DENSE,
    NOT_FLOATING,
    ONES,
    Bad,
    Table,
    registered,
)
from tests.support.modules import LearnedScale, OwnSquareDiagonal, linear
from tests.support.tables import neg_softplus_transform

ORIGINAL = "parametrizations.weight.original"
MARK = "parametrizations.weight.0._extra_state"
ERRORS = "Error(s) in loading state_dict for ParametrizedLinear:\n\t"
MARKED = "expected the mark of exp(margin=0.0), a tensor of shape (256,), found "
COPYING = f'While copying the parameter named "{ORIGINAL}", '
TENSOR = f"{COPYING}expected torch.Tensor or Tensor-like object from checkpoint but received "


def loading(changes: dict[str, Any], **how: Any) -> Callable[[nn.Module], object]:
    """Loads the module's own state with ``changes``; None takes an entry out."""

    def call(module: nn.Module) -> object:
        state = {key: value.clone() for key, value in module.state_dict().items()} | changes
        return module.load_state_dict(
            {key: value for key, value in state.items() if value is not TAKEN_OUT}, **how
        )

    return call


TAKEN_OUT = object()


def plain(value: Any) -> dict[str, Any]:
    return {ORIGINAL: TAKEN_OUT, MARK: TAKEN_OUT, "weight": value}


def written_by(map: Any = "exp", **options: Any) -> dict[str, Tensor]:
    source = register_negative_diagonal(linear(-3.0), map=map, **options).state_dict()
    return {ORIGINAL: source[ORIGINAL], MARK: source[MARK]}


class Scaled(NegExpDiagonal):
    """Is called the same in two places, and means another thing."""

    scale = 1.0

    def map(self, x: Tensor) -> Tensor:
        return -self.scale * x.exp()

    def inverse(self, d: Tensor) -> Tensor:
        return (-d / self.scale).log()


def scaled(scale: float) -> NegativeDiagonal:
    made = Scaled()
    made.scale = scale
    return made


# The map, margin, dims, blocks and taps that a checkpoint was written by, and what that is called.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another map": ({"map": "softplus"}, "softplus(margin=0.0)"),
    "a third map": ({"map": "sign_flip"}, "sign_flip(margin=0.0)"),
    "a user's map": ({"map": OwnSquareDiagonal}, "OwnSquareDiagonal(margin=0.0) with ..."),
    "a user's map that learns": ({"map": LearnedScale}, "LearnedScale(margin=0.0)"),
    "a transform": (
        {"map": neg_softplus_transform()},
        "ComposeTransform( SoftplusTransform(), AffineTransform() )(margin=0.0) with ...",
    ),
    "another margin": ({"margin": 0.5}, "exp(margin=0.5)"),
    "other dims": ({"dims": ()}, "exp(margin=0.0, dims=())"),
    "dims the other way": ({"dims": (1, 0)}, "exp(margin=0.0, dims=(1, 0))"),
    "other blocks": ({"blocks": 3}, "exp(margin=0.0, blocks=3)"),
}
MARKS: dict[str, tuple[Any, str]] = {
    "a text": ("exp", f"{MARKED}'exp'"),
    "none": (None, f"{MARKED}None"),
    "a number": (3, f"{MARKED}3"),
    "bytes": (b"exp", f"{MARKED}b'exp'"),
    "a dict": ({}, f"{MARKED}{{}}"),
    "a scalar": (torch.zeros(()), f"{MARKED}shape (), torch.float32"),
    "a matrix": (torch.zeros(16, 16), f"{MARKED}shape (16, 16), torch.float32"),
    "complex": (torch.zeros(256).cfloat(), f"{MARKED}shape (256,), torch.complex64"),
    "sparse": (torch.zeros(256).to_sparse(), f"{MARKED}shape (256,), torch.float32"),
    **{
        label: (value, "expected a checkpoint of exp(margin=0.0), found one of no map")
        for label, value in {
            "NaN": torch.full((256,), math.nan),
            "empty": torch.zeros(0),
            "all zero": torch.zeros(256),
            "all spaces": torch.full((256,), 256.0),
        }.items()
    },
}
PLAIN: dict[str, tuple[Any, str]] = {
    **{
        label: (
            ONES * value,
            f"While loading weight: weight: expected a finite diagonal, got 3 of 3 entries NaN or "
            f"infinite; got {MATRIX}",
        )
        for label, value in {"NaN": math.nan, "infinity": -math.inf}.items()
    },
    "complex numbers": (
        ONES.cfloat(),
        "While loading weight: expected real numbers, got shape (3, 3), torch.complex64",
    ),
    "quantized": (
        NOT_DENSE["quantized"][0],
        "While loading weight: expected real numbers, got shape (3, 3), torch.qint8",
    ),
    "sparse": (
        NOT_DENSE["sparse"][0],
        f"While loading weight: weight: expected a dense tensor, got {NOT_DENSE['sparse'][1]}",
    ),
    "lists": ([[1.0]], f"{TENSOR}<class 'list'>"),
    "none": (None, f"{TENSOR}<class 'NoneType'>"),
}
SIZE = f"size mismatch for {ORIGINAL}: copying a param with shape torch.Size([4, 4]) from "
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "an original of another shape": ({ORIGINAL: torch.ones(4, 4)}, f"{SIZE}..."),
    "a plain weight of another shape": (plain(torch.ones(4, 4)), f"{SIZE}..."),
    "a flat original": ({ORIGINAL: torch.ones(9)}, "size mismatch for ..."),
    "an original of lists": ({ORIGINAL: [[1.0]]}, f"{TENSOR}<class 'list'>"),
    "a complex original": (
        {ORIGINAL: ONES.cfloat()},
        "While loading weight: expected real numbers, got shape (3, 3), torch.complex64",
    ),
    "a sparse original": ({ORIGINAL: ONES.to_sparse()}, "..."),
    "an original on meta": ({ORIGINAL: ONES.to("meta")}, f"{COPYING}...no data!..."),
}


def _both_ways(label: str, changes: dict[str, Any], message: str) -> Table:
    return {
        f"load_state_dict: {label}, strict={strict}": Bad(
            registered, loading(changes, strict=strict), RuntimeError, f"{ERRORS}{message}"
        )
        for strict in (True, False)
    }


def _assigned(changes: dict[str, Any], message: str) -> Bad:
    # Without a bias, which would be assigned.
    return Bad(
        lambda: register_negative_diagonal(nn.Linear(3, 3, bias=False), map="exp"),
        loading(changes, assign=True),
        RuntimeError,
        f"{ERRORS}{message}",
    )


ROWS: Table = {}
for label, (options, found) in OTHERS.items():
    message = f"weight: expected a checkpoint of exp(margin=0.0), found one of {found}"
    ROWS |= _both_ways(label, written_by(**options), f"While loading weight: {message}")
    ROWS[f"load_state_dict: {label}, assign"] = _assigned(
        written_by(**options), f"While loading weight: {message}"
    )
for label, (mark, message) in MARKS.items():
    ROWS |= _both_ways(
        f"a mark that is {label}", {MARK: mark}, f"While loading weight: weight: {message}"
    )
for label, (value, message) in PLAIN.items():
    ROWS |= _both_ways(f"a plain weight of {label}", plain(value), message)
for label, dtype in NOT_FLOATING.items():
    if not dtype.is_complex:
        ROWS[f"load_state_dict: a plain weight of {label}, assign"] = _assigned(
            plain(ONES.to(dtype)),
            f"While loading weight: weight: expected {FLOATING}, got shape (3, 3), {dtype}",
        )
for label, (changes, message) in DAMAGED.items():
    ROWS |= _both_ways(label, changes, message)
