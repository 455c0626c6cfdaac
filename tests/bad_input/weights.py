"""Tensors that are no weights, at every door: registered, assigned, and given to the classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import NegExpDiagonal, register_negative_diagonal
from tests.bad_input.table import (
    DTYPES,
    FLOATING,
    INFEASIBLE,
    LAZY,
    MATRIX,
    NOT_DENSE,
    NOT_FINITE,
    NOT_FINITE_MESSAGE,
    NOT_FLOATING,
    NOT_TENSORS,
    ONES,
    UNINITIALIZED,
    Bad,
    Table,
    Values,
    given,
    holding,
    holding_each,
    quietly,
    registered,
    saying,
)
from tests.support.modules import OwnSquareDiagonal, linear
from tests.support.tables import BUILT_IN

CLASSES = {cls.__name__: cls for cls in BUILT_IN.values()} | {"NegativeDiagonal": OwnSquareDiagonal}
# Which parametrize asks for a shape, before it asks us anything.
PYTORCHS_OWN = ("a lazy parameter", "nested")
NO_WEIGHT = NOT_TENSORS | UNINITIALIZED | NOT_DENSE | NOT_FLOATING
# One of each kind, for what is alike.
SAMPLE = {label: NO_WEIGHT[label] for label in ("lists", "sparse", "integers")}
WANTED = f"weight: expected a tensor of {MATRIX} on cpu, got "


def assign(module: nn.Module, value: Any) -> None:
    module.weight = value


def register_parameter(module: nn.Module, value: Any) -> None:
    module.register_parameter("weight", value)


def bare(module: nn.Module | None = None, **options: Any) -> nn.Module:
    """By the stock door."""
    parametrization = NegExpDiagonal(**options)
    module = linear(-2.0) if module is None else module
    return parametrize.register_parametrization(module, "weight", parametrization)


def after(parametrization: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", parametrization)


class Square(nn.Module):
    """Has no inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.square()


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


MEMORY = "weight: expected a tensor whose entries have a memory of their own, got "
REGISTERED = "weight: expected a tensor not registered yet, got one that is"
DENSE = (
    "weight: expected a layer with dense gradients, got {}(sparse=True); make it with sparse=False"
)
MODULES: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "a lazy layer": (lambda: quietly(lambda: nn.LazyLinear(3)), TypeError, f"weight: {LAZY}"),
    "a scripted module": (
        lambda: quietly(lambda: torch.jit.script(linear())),
        TypeError,
        "weight: expected a module in Python, got a RecursiveScriptModule",
    ),
    "a registered module": (registered, ValueError, REGISTERED),
    "what the bare class is on": (lambda: after(NegExpDiagonal()), ValueError, REGISTERED),
    "what has no inverse": (
        lambda: after(Square()),
        ValueError,
        "weight: expected parametrizations with a right_inverse, got Square",
    ),
    **{
        f"sparse gradients of {cls.__name__}": (
            lambda cls=cls: cls(3, 3, sparse=True),
            ValueError,
            DENSE.format(cls.__name__),
        )
        for cls in (nn.Embedding, nn.EmbeddingBag)
    },
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


def refused_by_policy(where: str, make: Callable[..., Any], call: Callable[..., object]) -> Table:
    """Rows for infeasible entries under ``infeasible="error"``."""
    return {
        f"{where}: {label}": Bad(
            lambda options=options, value=value: make(value, infeasible="error", **options),
            lambda made, options=options, value=value: call(
                made, value, infeasible="error", **options
            ),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for label, (options, value, message) in INFEASIBLE.items()
    }


def _registered() -> Table:
    without = {label: row for label, row in NOT_DENSE.items() if label not in PYTORCHS_OWN}
    tensors = saying(NOT_FLOATING | NOT_FINITE, "weight: ")
    rows = holding_each(
        "register_negative_diagonal",
        register_negative_diagonal,
        tensors | saying(NOT_DENSE | UNINITIALIZED, "weight: "),
    )
    rows |= holding_each("register_parametrization", bare, tensors | saying(without, "weight: "))
    rows |= {
        f"register_negative_diagonal: {label}": Bad(make, register_negative_diagonal, error, text)
        for label, (make, error, text) in MODULES.items()
    }
    for where, register in (
        ("register_negative_diagonal", register_negative_diagonal),
        ("register_parametrization", bare),
    ):
        rows |= refused_by_policy(
            where,
            lambda value, **_: holding(value),
            lambda module, _, register=register, **options: register(module, **options),
        )
    return rows


def _assigned() -> Table:
    shapes = [(3, 2), (2, 2), (9,), (1, 3, 3), (), (1, 3)]
    others = {f"shape {shape}": -torch.ones(shape) for shape in shapes}
    others |= {"a parameter of shape (3, 2)": nn.Parameter(torch.ones(3, 2))}
    values: Values = {
        label: (value, ValueError, f"shape {tuple(value.shape)}, torch.float32 on cpu")
        for label, value in others.items()
    }
    dtypes = DTYPES | {"halves": torch.float16, "bfloat16": torch.bfloat16, "doubles": torch.double}
    values |= {
        label: (quietly(lambda d=dtype: ONES.to(d)), ValueError, f"shape (3, 3), {dtype} on cpu")
        for label, dtype in dtypes.items()
    }
    values |= {"a meta tensor": (ONES.to("meta"), ValueError, f"{MATRIX} on meta")}
    values = saying(values, WANTED)
    mixed = torch.tensor([[float("nan"), 0, 0], [0, 1, 0], [0, 0, -1]])
    finite = {"NaN and infeasible": (mixed, ValueError, NOT_FINITE_MESSAGE.replace("3 of", "1 of"))}
    values |= saying(NOT_TENSORS | UNINITIALIZED | NOT_DENSE | NOT_FINITE | finite, "weight: ")
    rows = given("layer.weight", registered, assign, values)
    del values["none"]  # which takes a parameter out
    rows |= given("register_parameter", registered, register_parameter, values)
    without = {label: row for label, row in NO_WEIGHT.items() if label not in PYTORCHS_OWN}
    rows |= given("a bare layer.weight", bare, assign, saying(without | NOT_FINITE, "weight: "))
    for where, make, given_as in (
        ("layer.weight", registered, lambda value: value),
        ("layer.weight as parameter", registered, nn.Parameter),
        ("a bare layer.weight", bare, lambda value: value),
    ):
        rows |= refused_by_policy(
            where,
            lambda _, make=make, **options: make(**options),
            lambda module, value, given_as=given_as, **_: assign(module, given_as(value)),
        )
    return rows


def _given_to_classes() -> Table:
    policy = "infeasible: expected one of ('warn', 'reflect', 'error'), got "
    policies: Values = {
        "an unknown policy": ("ignore", ValueError, policy + "'ignore'"),
        "a policy of a number": (3, TypeError, policy + "int"),
    }
    rows: Table = {}
    for name, cls in CLASSES.items():
        everything = cls is NegExpDiagonal
        values = saying(NO_WEIGHT if everything else SAMPLE, "weight: ")
        for call in ("forward", "right_inverse", "entries"):
            use = lambda made, bad, call=call: getattr(made, call)(bad)  # noqa: E731
            rows |= given(f"{name}.{call}", cls, use, values)
        rows |= given(
            f"{name}.right_inverse",
            cls,
            lambda made, bad: made.right_inverse(-ONES, bad),
            policies,
        )
        if not everything and cls is not OwnSquareDiagonal:
            continue
        use = lambda made, bad: made.right_inverse(bad)  # noqa: E731
        rows |= given(f"{name}.right_inverse", cls, use, saying(NOT_FINITE, "weight: "))
        rows |= refused_by_policy(
            f"{name}.right_inverse",
            lambda _, cls=cls, **options: cls(**options),
            lambda made, value, **_: made.right_inverse(value),
        )
    dtypes = {
        label: (ONES_OF, TypeError, f"expected {FLOATING}, got {ONES_OF.dtype}")
        for label, (ONES_OF, _, _) in NOT_FLOATING.items()
    }
    for name in (cls.__name__ for cls in BUILT_IN.values()):
        values = NOT_TENSORS | UNINITIALIZED | NOT_DENSE | dtypes
        if name != "NegExpDiagonal":
            values = {label: values[label] for label in SAMPLE}
        for call in ("map", "inverse"):
            use = lambda made, bad, call=call: getattr(made, call)(bad)  # noqa: E731
            rows |= given(f"{name}.{call}", CLASSES[name], use, values)
    return rows


ROWS: Table = {
    **_registered(),
    **_assigned(),
    **_given_to_classes(),
    "register_negative_diagonal: a lazy layer by pattern": Bad(
        lambda: quietly(lambda: nn.Sequential(linear(), nn.LazyLinear(3))),
        lambda model: register_negative_diagonal(model, "*.weight"),
        TypeError,
        f"1.weight: {LAZY}",
    ),
    "register_negative_diagonal: NaN in the second of two": Bad(
        lambda: nn.Sequential(linear(), linear(float("nan"))),
        lambda model: register_negative_diagonal(model, "*.weight"),
        ValueError,
        f"1.weight: {NOT_FINITE_MESSAGE}",
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
