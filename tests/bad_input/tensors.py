"""Tensors that cannot be registered, and modules that would not notice."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal, register_negative_diagonal
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
    registered,
)
from tests.support.modules import linear


class Square(nn.Module):
    """Has no inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.square()


def after(parametrization: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", parametrization)


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


LAZY = "expected an initialized tensor, got UninitializedParameter; run the lazy module once first"
MEMORY = "weight: expected a tensor whose entries have a memory of their own, got "
WHERE = {
    "nowhere finite": (math.nan, {}, "a finite diagonal, got 3 of 3 entries NaN or infinite"),
    "infinite": (-math.inf, {}, "a finite diagonal, got 3 of 3 entries NaN or infinite"),
    "infeasible": (
        2.0,
        {"infeasible": "error"},
        "a negative diagonal, got 3 of 3 entries that are not, the largest 2",
    ),
    "above the margin": (
        -1.0,
        {"infeasible": "error", "margin": 1.5},
        "a diagonal of at most -1.5, got 3 of 3 entries that are not, the largest -1",
    ),
}

MODULES: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "a lazy layer": (lambda: quietly(lambda: nn.LazyLinear(3)), TypeError, f"weight: {LAZY}"),
    "a lazy convolution": (
        lambda: quietly(lambda: nn.LazyConv2d(3, 3)),
        TypeError,
        f"weight: {LAZY}",
    ),
    "a scripted module": (
        lambda: quietly(lambda: torch.jit.script(linear())),
        TypeError,
        "weight: expected a module in Python, got a RecursiveScriptModule",
    ),
    "a registered module": (
        registered,
        ValueError,
        "weight: expected a tensor not registered yet, got one that is",
    ),
    "what the bare class is on": (
        lambda: after(NegExpDiagonal()),
        ValueError,
        "weight: expected a tensor not registered yet, got one that is",
    ),
    "what has no inverse": (
        lambda: after(Square()),
        ValueError,
        "weight: expected parametrizations with a right_inverse, got Square",
    ),
    "sparse gradients": (
        lambda: nn.Embedding(3, 3, sparse=True),
        ValueError,
        "weight: expected a layer with dense gradients, got Embedding(sparse=True); make it with "
        "sparse=False",
    ),
    "sparse gradients of bags": (
        lambda: nn.EmbeddingBag(3, 3, sparse=True),
        ValueError,
        "weight: expected a layer with dense gradients, got EmbeddingBag(sparse=True); make it "
        "with sparse=False",
    ),
    "three dimensions": (
        lambda: nn.Bilinear(2, 2, 2),
        ValueError,
        "weight: expected dims, such as dims=(-2, -1), for a tensor of 3 dimensions, got none; "
        "shape (2, 2, 2), torch.float32",
    ),
    "a layer made in inference mode": (
        made_in_inference,
        ValueError,
        f"weight: expected a tensor made outside of torch.inference_mode(), got {MATRIX}, made "
        f"in it",
    ),
    "an expanded parameter": (
        lambda: holding(nn.Parameter(torch.ones(1).expand(3, 3))),
        ValueError,
        f"{MEMORY}{MATRIX} with strides (0, 0); make it contiguous first",
    ),
    **{
        f"a buffer that overlaps with strides {strides}": (
            lambda shape=shape, strides=strides: holding(torch.ones(12).as_strided(shape, strides)),
            ValueError,
            f"{MEMORY}shape {shape}, torch.float32 with strides {strides}; make it contiguous "
            f"first",
        )
        for shape, strides in (
            ((3, 3), (1, 1)),
            ((2, 2), (1, 1)),  # of three numbers
            ((2, 2), (2, 2)),
            ((3, 4), (2, 1)),
            ((4, 3), (1, 3)),
        )
    },
}

ROWS: Table = {
    **{
        f"register_negative_diagonal: {label}": Bad(
            make, register_negative_diagonal, error, message
        )
        for label, (make, error, message) in MODULES.items()
    },
    **{
        f"register_negative_diagonal: {label} tensor": Bad(
            lambda tensor=tensor: holding(tensor),
            register_negative_diagonal,
            TypeError,
            f"weight: expected a dense tensor, got {found}",
        )
        for label, (tensor, found) in NOT_DENSE.items()
    },
    **{
        f"register_negative_diagonal: {label}": Bad(
            lambda dtype=dtype: holding(quietly(lambda: ONES.to(dtype))),
            register_negative_diagonal,
            TypeError,
            f"weight: expected {FLOATING}, got shape (3, 3), {dtype}",
        )
        for label, dtype in NOT_FLOATING.items()
    },
    **{
        f"register_negative_diagonal: a diagonal {label}": Bad(
            lambda value=value: linear(value),
            lambda module, options=options: register_negative_diagonal(module, **options),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for label, (value, options, message) in WHERE.items()
    },
    "register_negative_diagonal: a lazy layer by pattern": Bad(
        lambda: quietly(lambda: nn.Sequential(linear(), nn.LazyLinear(3))),
        lambda model: register_negative_diagonal(model, "*.weight"),
        TypeError,
        f"1.weight: {LAZY}",
    ),
    "register_negative_diagonal: NaN in the second of two": Bad(
        lambda: nn.Sequential(linear(), linear(math.nan)),
        lambda model: register_negative_diagonal(model, "*.weight"),
        ValueError,
        f"1.weight: expected a finite diagonal, got 3 of 3 entries NaN or infinite; got {MATRIX}",
    ),
    "register_negative_diagonal: the center between dilated taps": Bad(
        lambda: nn.Conv1d(2, 2, 4, dilation=2, padding="same"),
        lambda module: register_negative_diagonal(module, taps="center"),
        ValueError,
        "weight: expected an odd kernel size where the dilation is above 1 for taps='center', got "
        "kernel_size=(4,), dilation=(2,), whose main diagonal no tap reaches",
    ),
    "register_negative_diagonal: a margin beyond float16": Bad(
        lambda: linear(dtype=torch.float16),
        lambda module: register_negative_diagonal(module, margin=7e4),
        ValueError,
        "weight: expected a margin that torch.float16 can keep clear of its largest value, got "
        "margin=70000.0; got shape (3, 3), torch.float16",
    ),
}
