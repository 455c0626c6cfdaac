"""Tensors that are in use at a second place."""

from collections.abc import Callable

from torch import Tensor, nn

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.bad_input.table import MATRIX, Bad, Table
from tests.support.modules import linear

Keep = Callable[[Tensor], object]


def keeping(module: nn.Module, name: str, attribute: str, keep: Keep) -> nn.Module:
    """A module that keeps a tensor a second time."""
    object.__setattr__(module, attribute, keep(getattr(module, name)))
    return module


def tied(share: Callable[[Tensor], nn.Parameter]) -> nn.ModuleList:
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


KEPT = (
    (linear, "weight", "kept", lambda w: w, ""),
    (linear, "weight", "kept", lambda w: {"w": w}, "['w']"),
    (linear, "weight", "kept", lambda w: [1, w], "[1]"),
    (linear, "weight", "kept", lambda w: {"a": [(w,)]}, "['a'][0][0]"),
    # Only the list that a recurrent layer has by itself is let pass.
    (linear, "weight", "_flat_weights", lambda w: [w], "[0]"),
    (lambda: nn.RNN(3, 3), "weight_hh_l0", "kept", lambda w: [w], "[0]"),
)
TIED = {
    "a tied weight": (lambda: tied(lambda w: w), "0.weight", "0.weight", "1.weight"),
    "the other tied weight": (lambda: tied(lambda w: w), "1.weight", "1.weight", "0.weight"),
    "a pattern over both": (lambda: tied(lambda w: w), "*.weight", "0.weight", "1.weight"),
    "shared memory": (
        lambda: tied(lambda w: nn.Parameter(w.detach())),
        "0.weight",
        "0.weight",
        "1.weight",
    ),
    "another's original": (tied_to_an_original, "1.weight", "1.weight", "0.weight"),
}
ROWS: Table = {
    **{
        f"register_negative_diagonal: {name} also in {attribute}{where}": Bad(
            lambda make=make, given=(name, attribute, keep): keeping(make(), *given),
            lambda module, name=name: register_negative_diagonal(module, name),
            ValueError,
            f"{name}: expected a tensor that its module reads as self.{name}, got one that it also "
            f"keeps in self.{attribute}{where}, {MATRIX}; what reads it there would see the "
            f"original, which is not constrained. Remove that reference first",
        )
        for make, name, attribute, keep, where in KEPT
    },
    **{
        f"register_negative_diagonal: {label}": Bad(
            make,
            lambda model, pattern=pattern: register_negative_diagonal(model, pattern),
            ValueError,
            f"{name}: expected a tensor of its own, got one tied to {other}, {MATRIX}; registering "
            f"would rewrite both. Untie them first",
        )
        for label, (make, pattern, name, other) in TIED.items()
    },
    **{
        f"remove_negative_diagonal: a shared original, {name}": Bad(
            sharing_originals,
            lambda model, name=name: remove_negative_diagonal(model, name),
            ValueError,
            f"0.weight: expected a tensor of its own, got one tied to 1.weight, {MATRIX}; removing "
            f"would bake the value in twice. Untie them first",
        )
        for name in ("0.weight", "*.weight")
    },
}
