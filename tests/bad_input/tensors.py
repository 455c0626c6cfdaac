"""Tensors that are no weights: registered, assigned, given to the classes, or used twice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from negdiag_param import NegExpDiagonal, register_negative_diagonal, remove_negative_diagonal
from tests.bad_input import table as t
from tests.bad_input.table import MATRIX, ONES, Bad, Table, Values, given, registered, saying
from tests.support.modules import OwnSquareDiagonal, linear
from tests.support.tables import BUILT_IN

CLASSES = {cls.__name__: cls for cls in BUILT_IN.values()} | {"NegativeDiagonal": OwnSquareDiagonal}
# Which parametrize asks for a shape, before it asks us anything.
PYTORCHS_OWN = ("a lazy parameter", "nested")
NO_WEIGHT = t.NOT_TENSORS | t.UNINITIALIZED | t.NOT_DENSE | t.NOT_FLOATING
# One of each kind, for what is alike.
SAMPLE = {label: NO_WEIGHT[label] for label in ("list", "sparse", "torch.int32")}


def bare(module: nn.Module | None = None, **options: Any) -> nn.Module:
    """By the stock door."""
    module = linear(-2.0) if module is None else module
    return parametrize.register_parametrization(module, "weight", NegExpDiagonal(**options))


def chained() -> nn.Module:
    """With two originals."""
    return register_negative_diagonal(weight_norm(linear()), infeasible="reflect")


def recurrent() -> nn.Module:
    return register_negative_diagonal(nn.GRU(3, 3), "weight_hh_l0")


def after(parametrization: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", parametrization)


class Square(nn.Module):
    """Has no inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.square()


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


MEMORY = "weight: expected a tensor whose entries have a memory of their own, got {} with strides "
MEMORY += "{}; make it contiguous first"
REGISTERED = "weight: expected a tensor not registered yet, got one that is"
MODULES: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "a lazy layer": (lambda: t.quietly(lambda: nn.LazyLinear(3)), TypeError, f"weight: {t.LAZY}"),
    "a scripted module": (
        lambda: t.quietly(lambda: torch.jit.script(linear())),
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
            f"weight: expected a layer with dense gradients, got {cls.__name__}(sparse=True); ...",
        )
        for cls in (nn.Embedding, nn.EmbeddingBag)
    },
    "three dimensions": (
        lambda: nn.Bilinear(2, 2, 2),
        ValueError,
        "weight: expected dims, ..., for a tensor of 3 dimensions, got none; shape (2, 2, 2), ...",
    ),
    "a layer made in inference mode": (
        made_in_inference,
        ValueError,
        f"weight: expected a tensor made outside of torch.inference_mode(), got {MATRIX}, ...",
    ),
    "an expanded parameter": (
        lambda: t.holding(nn.Parameter(torch.ones(1).expand(3, 3))),
        ValueError,
        MEMORY.format(MATRIX, (0, 0)),
    ),
    **{
        f"a buffer that overlaps with strides {strides} over {shape}": (
            lambda at=(shape, strides): t.holding(torch.ones(12).as_strided(*at)),
            ValueError,
            MEMORY.format(f"shape {shape}, torch.float32", strides),
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
        for label, (options, value, message) in t.INFEASIBLE.items()
    }


def _registered() -> Table:
    rows = {
        f"register_negative_diagonal: {label}": Bad(make, register_negative_diagonal, error, text)
        for label, (make, error, text) in MODULES.items()
    }
    without = {k: row for k, row in t.NOT_DENSE.items() if k not in PYTORCHS_OWN}
    for where, register, values in (
        ("register_negative_diagonal", register_negative_diagonal, t.NOT_DENSE | t.UNINITIALIZED),
        ("register_parametrization", bare, without),
    ):
        values = saying(values | t.NOT_FLOATING | t.NOT_FINITE, "weight: ")
        for label, (bad, error, message) in values.items():
            row = Bad(lambda bad=bad: t.holding(bad), register, error, message)
            rows[f"{where}: {label}"] = row
        rows |= refused_by_policy(
            where,
            lambda value, **_: t.holding(value),
            lambda module, _, register=register, **options: register(module, **options),
        )
    return rows


def _assigned() -> Table:
    others = {
        f"shape {shape}": -torch.ones(shape)
        for shape in [(3, 2), (2, 2), (9,), (1, 3, 3), (), (1, 3)]
    }
    others |= {"a parameter of shape (3, 2)": nn.Parameter(torch.ones(3, 2))}
    for dtype in (*t.DTYPES, torch.float16, torch.bfloat16, torch.float64):
        others[str(dtype)] = t.quietly(lambda dtype=dtype: ONES.to(dtype))
    others |= {"a meta tensor": ONES.to("meta")}
    values: Values = {
        label: (
            value,
            ValueError,
            f"{t.WANTED}shape {tuple(value.shape)}, {value.dtype} on {value.device}",
        )
        for label, value in others.items()
    }
    mixed = torch.tensor([[float("nan"), 0, 0], [0, 1, 0], [0, 0, -1]])
    one = (mixed, ValueError, t.NOT_FINITE_MESSAGE.replace("3 of", "1 of"))
    wrong = t.NOT_TENSORS | t.UNINITIALIZED | t.NOT_DENSE | t.NOT_FINITE
    values |= saying(wrong | {"NaN and infeasible": one}, "weight: ")
    rows = given("layer.weight", registered, t.assign, values)
    del values["NoneType"]  # which takes a parameter out
    rows |= given(
        "register_parameter", registered, lambda m, v: m.register_parameter("weight", v), values
    )
    without = {k: row for k, row in NO_WEIGHT.items() if k not in PYTORCHS_OWN}
    values = saying(without | t.NOT_FINITE, "weight: ")
    rows |= given("a bare layer.weight", bare, t.assign, values)
    for where, make, given_as in (
        ("layer.weight", registered, lambda value: value),
        ("layer.weight as parameter", registered, nn.Parameter),
        ("a bare layer.weight", bare, lambda value: value),
    ):
        rows |= refused_by_policy(
            where,
            lambda _, make=make, **options: make(**options),
            lambda module, value, given_as=given_as, **_: t.assign(module, given_as(value)),
        )
    originals = "weight: expected originals of shapes [(3, 1), (3, 3)], got [({}, 1), {}]"
    values = {
        f"shape {shape}": (-torch.ones(shape), ValueError, originals.format(shape[0], shape))
        for shape in [(2, 3), (4, 3), (3, 2), (3, 6)]
    }
    message = "weight: expected a tensor of torch.float32, got torch.float64"
    values["float64"] = (-ONES.double(), ValueError, message)
    rows |= given("layer.weight in a chain", chained, t.assign, values)
    rows["a recurrent layer: None"] = Bad(
        recurrent,
        lambda module: setattr(module, "weight_hh_l0", None),
        TypeError,
        "weight_hh_l0: expected a tensor, got NoneType",
    )
    return rows


def _given_to_classes() -> Table:
    policy = "infeasible: expected one of ('warn', 'reflect', 'error'), got "
    policies: Values = {
        "an unknown policy": ("ignore", ValueError, f"{policy}'ignore'"),
        "a policy of a number": (3, TypeError, f"{policy}int"),
    }
    dtypes = {
        label: (bad, TypeError, f"expected {t.FLOATING}, got {bad.dtype}")
        for label, (bad, _, _) in t.NOT_FLOATING.items()
    }
    no_entries = t.NOT_TENSORS | t.UNINITIALIZED | t.NOT_DENSE | dtypes
    rows: Table = {}
    for name, cls in CLASSES.items():
        calls = dict.fromkeys(
            ("forward", "right_inverse", "entries"), saying(NO_WEIGHT, "weight: ")
        )
        if name != "NegativeDiagonal":
            calls |= dict.fromkeys(("map", "inverse"), no_entries)
        for call, values in calls.items():
            if cls is not NegExpDiagonal:
                values = {label: values[label] for label in SAMPLE}
            use = lambda made, bad, call=call: getattr(made, call)(bad)  # noqa: E731
            rows |= given(f"{name}.{call}", cls, use, values)
        where = f"{name}.right_inverse"
        rows |= given(where, cls, lambda made, bad: made.right_inverse(-ONES, bad), policies)
        if cls in (NegExpDiagonal, OwnSquareDiagonal):
            values = saying(t.NOT_FINITE, "weight: ")
            rows |= given(where, cls, lambda made, bad: made.right_inverse(bad), values)
            rows |= refused_by_policy(
                where,
                lambda _, cls=cls, **options: cls(**options),
                lambda made, value, **_: made.right_inverse(value),
            )
    return rows


def keeping(make: Callable[[], nn.Module], name: str, attribute: str, keep: Callable) -> nn.Module:
    """A module that keeps a tensor a second time."""
    module = make()
    object.__setattr__(module, attribute, keep(getattr(module, name)))
    return module


def tied(share: Callable[[Tensor], nn.Parameter] = lambda weight: weight) -> nn.ModuleList:
    model = nn.ModuleList([linear(), linear()])
    model[1].weight = share(model[0].weight)
    return model


def sharing_originals() -> nn.ModuleList:
    model = register_negative_diagonal(nn.ModuleList([linear(), linear()]), "*.weight")
    model[1].parametrizations.weight.original = model[0].parametrizations.weight.original
    return model


def tied_to_an_original() -> nn.ModuleList:
    model = register_negative_diagonal(nn.ModuleList([linear(), linear()]), "0.weight")
    model[1].weight = model[0].parametrizations.weight.original
    return model


KEPT = [
    (linear, "weight", "kept", lambda w: w, ""),
    (linear, "weight", "kept", lambda w: {"w": w}, "['w']"),
    (linear, "weight", "kept", lambda w: [1, w], "[1]"),
    (linear, "weight", "kept", lambda w: {"a": [(w,)]}, "['a'][0][0]"),
    (linear, "weight", "part", lambda w: w.detach().as_strided((3, 3), (1, 1), 4), ""),
    # Only the list that a recurrent layer has by itself is let pass.
    (linear, "weight", "_flat_weights", lambda w: [w], "[0]"),
    (lambda: nn.RNN(3, 3), "weight_hh_l0", "kept", lambda w: [w], "[0]"),
]
TIED_NAMES = ("0.weight", "0.weight", "1.weight")
TIED = [
    (tied, "0.weight", "0.weight", "1.weight"),
    (tied, "1.weight", "1.weight", "0.weight"),
    (tied, "*.weight", "0.weight", "1.weight"),
    *(
        (lambda share=share: tied(lambda w: nn.Parameter(share(w.detach()))), *TIED_NAMES)
        for share in (
            lambda w: w,
            lambda w: w[1:],
            lambda w: w.flatten()[2:8].view(torch.float64),  # its bytes
        )
    ),
    (tied_to_an_original, "1.weight", "1.weight", "0.weight"),
]
OWN = "expected a tensor of its own, got one tied to"
ROWS: Table = {
    **_registered(),
    **_assigned(),
    **_given_to_classes(),
    **{
        f"register_negative_diagonal: {name} also in {attribute}{where}": Bad(
            lambda given=(make, name, attribute, keep): keeping(*given),
            lambda module, name=name: register_negative_diagonal(module, name),
            ValueError,
            f"{name}: expected a tensor that its module reads as self.{name}, got one ... also "
            f"keeps in self.{attribute}{where}, {MATRIX}; ... Remove that reference first",
        )
        for make, name, attribute, keep, where in KEPT
    },
    **{
        f"register_negative_diagonal: tied, {i}": Bad(
            make,
            lambda model, pattern=pattern: register_negative_diagonal(model, pattern),
            ValueError,
            f"{name}: {OWN} {other}, {MATRIX}; registering would rewrite both. Untie them first",
        )
        for i, (make, pattern, name, other) in enumerate(TIED)
    },
    **{
        f"remove_negative_diagonal: a shared original, {name}": Bad(
            sharing_originals,
            lambda model, name=name: remove_negative_diagonal(model, name),
            ValueError,
            f"0.weight: {OWN} 1.weight, {MATRIX}; removing would bake the value in twice. ...",
        )
        for name in ("0.weight", "*.weight")
    },
    **{
        f"register_negative_diagonal: {name} of {cls.__name__}": Bad(
            lambda cls=cls: cls(4, 2),
            lambda module, name=name: register_negative_diagonal(module, name),
            ValueError,
            f"{name}: expected blocks, as {blocks} matrices are stacked in {name}, got none; shape "
            f"({rows}, 4), torch.float32; pass blocks={blocks} for a diagonal in each",
        )
        for cls, name, blocks, rows in (
            (nn.LSTM, "weight_ih_l0", 4, 8),
            (nn.GRU, "weight_ih_l0", 3, 6),
            (nn.MultiheadAttention, "in_proj_weight", 3, 12),
        )
    },
    "register_negative_diagonal: a lazy layer by pattern": Bad(
        lambda: t.quietly(lambda: nn.Sequential(linear(), nn.LazyLinear(3))),
        lambda model: register_negative_diagonal(model, "*.weight"),
        TypeError,
        f"1.weight: {t.LAZY}",
    ),
    "register_negative_diagonal: NaN in the second of two": Bad(
        lambda: nn.Sequential(linear(), linear(float("nan"))),
        lambda model: register_negative_diagonal(model, "*.weight"),
        ValueError,
        f"1.weight: {t.NOT_FINITE_MESSAGE}",
    ),
}
