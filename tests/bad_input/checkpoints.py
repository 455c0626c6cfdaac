"""Checkpoints that are of another map, damaged, or none; nothing of them may be loaded."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.bad_input import table as t
from tests.bad_input.table import MATRIX, ONES, Bad, Table, Values, given, registered, saying
from tests.bad_input.tensors import bare
from tests.support.modules import LearnedScale, OwnSquareDiagonal, linear
from tests.support.tables import neg_softplus_transform

ORIGINAL = "parametrizations.weight.original"
MARK = "parametrizations.weight.0._extra_state"
ERRORS = "Error(s) in loading state_dict for ParametrizedLinear:\n\t"
MARKED = "expected the mark of exp(margin=0.0), a tensor of shape (256,), found "
COPYING = f'While copying the parameter named "{ORIGINAL}", '
TENSOR = f"{COPYING}expected torch.Tensor or Tensor-like object from checkpoint but received "
WHILE = "While loading weight: "
TAKEN_OUT = object()
KEYS = (ORIGINAL, MARK)


def loading(**how: Any) -> Callable[[nn.Module, dict[str, Any]], object]:
    """Loads the module's own state with changes."""

    def call(module: nn.Module, changes: dict[str, Any]) -> object:
        state = {key: value.clone() for key, value in module.state_dict().items()} | changes
        state = {key: value for key, value in state.items() if value is not TAKEN_OUT}
        return module.load_state_dict(state, **how)

    return call


def plain(value: Any) -> dict[str, Any]:
    return {ORIGINAL: TAKEN_OUT, MARK: TAKEN_OUT, "weight": value}


# By which options a checkpoint was written, and what that is called.
OTHERS: Values = {
    found: (
        {
            key: register_negative_diagonal(linear(-3.0), **options).state_dict()[key]
            for key in KEYS
        },
        RuntimeError,
        f"weight: expected a checkpoint of exp(margin=0.0), found one of {found}",
    )
    for options, found in [
        ({"map": "softplus"}, "softplus(margin=0.0)"),
        ({"map": "sign_flip"}, "sign_flip(margin=0.0)"),
        ({"map": OwnSquareDiagonal}, "OwnSquareDiagonal(margin=0.0) with ..."),
        ({"map": LearnedScale}, "LearnedScale(margin=0.0)"),
        (
            {"map": neg_softplus_transform()},
            "ComposeTransform( SoftplusTransform(), AffineTransform() )(margin=0.0) with ...",
        ),
        ({"map": "exp", "margin": 0.5}, "exp(margin=0.5)"),
        ({"map": "exp", "dims": ()}, "exp(margin=0.0, dims=())"),
        ({"map": "exp", "dims": (1, 0)}, "exp(margin=0.0, dims=(1, 0))"),
        ({"map": "exp", "blocks": 3}, "exp(margin=0.0, blocks=3)"),
    ]
}
NO_MAP = "expected a checkpoint of exp(margin=0.0), found one of no map"
MARKS: Values = {
    **{
        repr(mark): (mark, RuntimeError, MARKED + repr(mark))
        for mark in ("exp", None, 3, b"exp", {})
    },
    **{
        label: (mark, RuntimeError, f"{MARKED}shape {tuple(mark.shape)}, {mark.dtype}")
        for label, mark in {
            "a scalar": torch.zeros(()),
            "a matrix": torch.zeros(16, 16),
            "complex": torch.zeros(256).cfloat(),
            "sparse": torch.zeros(256).to_sparse(),
        }.items()
    },
    **{
        f"{size} times {value}": (torch.full((size,), value), RuntimeError, NO_MAP)
        for value, size in ((math.nan, 256), (0.0, 0), (0.0, 256), (256.0, 256))
    },
}
REAL = f"{WHILE}expected real numbers, got shape (3, 3), "
LOST: Values = {
    **saying(t.NOT_FINITE, f"{WHILE}weight: "),
    "complex numbers": (ONES.cfloat(), RuntimeError, f"{REAL}torch.complex64"),
    "quantized": (t.NOT_DENSE["quantized"][0], RuntimeError, f"{REAL}torch.qint8"),
    "sparse": (t.NOT_DENSE["sparse"][0], TypeError, f"{WHILE}weight: {t.NOT_DENSE['sparse'][2]}"),
    "lists": ([[1.0]], RuntimeError, f"{TENSOR}<class 'list'>"),
    "none": (None, RuntimeError, f"{TENSOR}<class 'NoneType'>"),
}
SIZE = f"size mismatch for {ORIGINAL}: copying a param with shape torch.Size([4, 4]) from ..."
DAMAGED: Values = {
    "an original of another shape": ({ORIGINAL: torch.ones(4, 4)}, RuntimeError, SIZE),
    "a plain weight of another shape": (plain(torch.ones(4, 4)), RuntimeError, SIZE),
    "a flat original": ({ORIGINAL: torch.ones(9)}, RuntimeError, "size mismatch for ..."),
    "an original of lists": ({ORIGINAL: [[1.0]]}, RuntimeError, f"{TENSOR}<class 'list'>"),
    "a complex original": ({ORIGINAL: ONES.cfloat()}, RuntimeError, f"{REAL}torch.complex64"),
    "a sparse original": ({ORIGINAL: ONES.to_sparse()}, RuntimeError, "..."),
    "an original on meta": ({ORIGINAL: ONES.to("meta")}, RuntimeError, f"{COPYING}...no data!..."),
}


def within(values: Values, change: Callable[[Any], dict[str, Any]], what: str = "") -> Values:
    """As changes of a state, with errors that PyTorch collects into one of its own."""
    return {
        f"{what}{label}": (change(bad), RuntimeError, f"{ERRORS}{message}")
        for label, (bad, _, message) in values.items()
    }


def without_bias() -> nn.Module:
    """Which would be assigned before the weight is refused."""
    return register_negative_diagonal(nn.Linear(3, 3, bias=False), map="exp")


BOTH_WAYS = {
    **within(saying(OTHERS, WHILE), dict),
    **within(saying(MARKS, f"{WHILE}weight: "), lambda mark: {MARK: mark}, "a mark that is "),
    **within(LOST, plain, "a plain weight of "),
    **within(DAMAGED, dict),
}
real = {label: row for label, row in t.NOT_FLOATING.items() if not row[0].is_complex()}
ASSIGNED = {
    **within(saying(OTHERS, WHILE), dict),
    **within(saying(real | t.NOT_FINITE, f"{WHILE}weight: "), plain, "a plain weight of "),
}
INFEASIBLE: Values = {
    "what the policy refuses": (
        plain(ONES),
        RuntimeError,
        f"{ERRORS}{WHILE}weight: expected {t.NOT_NEGATIVE.format(3, 1)}; got {MATRIX}",
    )
}


def by_the_class(values: Values) -> Values:
    return {
        label: (bad, ValueError, message if message.startswith("weight") else f"weight: {message}")
        for label, (bad, _, message) in values.items()
    }


ROWS: Table = {
    **given("load_state_dict", registered, loading(strict=True), BOTH_WAYS),
    **given("load_state_dict, strict=False", registered, loading(strict=False), BOTH_WAYS),
    **given("load_state_dict, assign=True", without_bias, loading(assign=True), ASSIGNED),
    **given("load_state_dict", lambda: registered(infeasible="error"), loading(), INFEASIBLE),
    "load_state_dict: NaN for a layer of a model": Bad(
        lambda: nn.Sequential(without_bias()),
        lambda model: model.load_state_dict({"0.weight": ONES * math.nan}),
        RuntimeError,
        f"{ERRORS.replace('ParametrizedLinear', 'Sequential')}While loading 0.weight: weight: "
        f"{t.NOT_FINITE_MESSAGE}",
    ),
    **given(
        "NegExpDiagonal.load_state_dict",
        bare,
        loading(),
        {
            f"a mark that is {k}": ({MARK: row[0]}, *row[1:])
            for k, row in by_the_class(MARKS).items()
        }
        | {k: ({MARK: row[0][MARK]}, *row[1:]) for k, row in by_the_class(OTHERS).items()},
    ),
}
