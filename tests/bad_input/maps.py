"""Maps of no kind that is known, and users' maps that are none."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transforms as T
from torch.nn.utils import parametrize

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.bad_input.table import MATRIX, Bad, Table, Values, given
from tests.support.modules import Half, linear

Function = Callable[[Any, Any], Any]
KNOWN = "clamp, exp, softplus, square, sign_flip"
LIKE = "shape (3,), torch.float32"


def exp(x: Tensor) -> Tensor:
    return -x.exp()


def log(d: Tensor) -> Tensor:
    return (-d).log()


def fails(*_: object) -> Tensor:
    raise RuntimeError("of the user's own")


def is_missing(*_: object) -> Tensor:
    raise NotImplementedError("not yet")


def own(map: Callable = exp, inverse: Callable = log) -> type[NegativeDiagonal]:
    methods = {"map": lambda self, x: map(x), "inverse": lambda self, d: inverse(d)}
    return type("Own", (NegativeDiagonal,), methods)


def values(found: str, name: str = "Own") -> str:
    return f"a map from the reals to the negative numbers, got {name} with values up to {found}"


def reach(ends: str, name: str) -> str:
    return (
        f"a diagonal between {ends}, which is what {name} reaches, got 3 of 3 entries beyond, from "
        f"-7 to -7"
    )


def described(made: Any) -> str:
    if isinstance(made, Tensor):
        return f"shape {tuple(made.shape)}, {made.dtype}"
    return type(made).__name__


X = torch.randn(3)
# What a map or an inverse returns that is no tensor like its argument.
RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda x: None,
    "a float": lambda x: -1.0,
    "an array": lambda x: -x.exp().numpy(),
    "its first": lambda x: -x[:1],
    "a sum": lambda x: -x.sum(),
    "integers": lambda x: -x.int(),
    "float64": lambda x: -x.double(),
    "complex": lambda x: -x.cfloat(),
}
NEGATED = T.AffineTransform(0.0, -1.0)
WAY_BACK = (
    "an inverse that reaches the diagonal, but the inverse of Own does not lead back to values "
    "between {0} and {0}"
)
# The layer's diagonal is -7.
NO_MAPS: dict[str, tuple[Any, str]] = {
    **{
        f"{what} to {label}": (
            own(**{what: function}),
            f"the {what} of Own to return {LIKE} for such a tensor, got {described(function(X))}",
        )
        for what in ("map", "inverse")
        for label, function in RETURNS.items()
    },
    "a map to NaN": (own(lambda x: x * math.nan), values("nan at -8")),
    "a map to infinity": (own(lambda x: x - math.inf), values("-inf at -8")),
    "a positive map": (own(lambda x: x.exp()), values("0.000335463 at -8")),
    "the identity": (own(lambda x: x, lambda d: d), values("0.1 at 0.1")),
    "a map that is NaN below zero": (own(lambda x: -x.sqrt()), values("nan at -8")),
    "a map in place": (
        own(lambda x: x.exp_().neg_()),
        "a map that leaves its argument as it is, got Own, which writes to it",
    ),
    "a constant": (own(lambda x: x * 0 - 1), reach("-1 and -1", "Own")),
    "an inverse to NaN": (own(inverse=lambda d: d.log()), WAY_BACK.format(-7)),
    "an inverse of another map": (own(inverse=lambda d: d), WAY_BACK.format(-7)),
    "an inverse that is not there": (
        own(inverse=is_missing),
        "an inverse of Own, got NotImplementedError('not yet')",
    ),
    "an exponential": (T.ExpTransform(), values("0.000335463 at -8", "ExpTransform()")),
    "a sigmoid": (T.SigmoidTransform(), values("0.00033535 at -8", "SigmoidTransform()")),
    "a power": (T.PowerTransform(2.0), values("64 at -8", "PowerTransform()")),
    "a softmax": (T.SoftmaxTransform(), values("0.333333 at -8", "SoftmaxTransform()")),
    "no transform": (T.identity_transform, values("0.1 at 0.1", "ComposeTransform( )")),
    "a stick": (
        T.StickBreakingTransform(),
        f"the map of StickBreakingTransform() to return {LIKE} for such a tensor, got shape (4,), "
        f"torch.float32",
    ),
    "a bounded transform": (
        T.ComposeTransform([T.SigmoidTransform(), NEGATED]),
        reach("-1 and ...", "ComposeTransform( SigmoidTransform(), AffineTransform() )"),
    ),
}


class Remembering(T.Transform):
    """A transform of a user's own, which cannot forget."""

    def __init__(self) -> None:
        super().__init__(cache_size=1)


class Mixin:
    map = own().map


class Moody(own()):
    """A map that can be made to fail."""

    is_content = True

    def map(self, x: Tensor) -> Tensor:
        return exp(x) if self.is_content else fails()


def two(first: float, second: float) -> nn.Sequential:
    return nn.Sequential(linear(first), linear(second))


def after_a_chain() -> nn.Module:
    model = two(-2.0, -14.0)
    parametrize.register_parametrization(model[0], "weight", Half())
    return model


def moody() -> nn.Module:
    model = register_negative_diagonal(two(-2.0, -2.0), "*.weight", map=Moody)
    model[1].parametrizations.weight[0].is_content = False
    return model


# An inverse that does for small entries only.
SHALLOW = own(inverse=lambda d: d if (d < -5).any() else log(d))


KIND = (
    f"map: expected one of {KNOWN}, a NegativeDiagonal class or instance, or a torch.distributions "
    f"Transform, got "
)
NAME = f"map: expected one of {KNOWN}, got "
COPIED = "map: expected a transform that can be copied, without .inv and with cache_size=0, got "
OTHERS: Values = {
    "an unknown name": ("expp", ValueError, f"{NAME}'expp'"),
    "an empty name": ("", ValueError, f"{NAME}''"),
    "no map": (None, TypeError, f"{KIND}None"),
    "a number": (3, TypeError, f"{KIND}3"),
    "a function": (torch.exp, TypeError, f"{KIND}<built-in method exp ...>"),
    "a list of maps": ([], TypeError, f"{KIND}[]"),
    "another module": (nn.Identity(), TypeError, f"{KIND}Identity()"),
    "another class": (nn.Linear, TypeError, f"{KIND}<class '...Linear'>"),
    "the base itself": (
        NegativeDiagonal,
        NotImplementedError,
        "NegativeDiagonal must define map and inverse",
    ),
    "a map without an inverse": (
        type("Half", (NegativeDiagonal,), {"map": own().map}),
        NotImplementedError,
        "Half must define inverse",
    ),
    "an inverse without a map": (
        type("Half", (NegativeDiagonal,), {"inverse": own().inverse}),
        NotImplementedError,
        "Half must define map",
    ),
    "a base that comes too late": (
        type("Late", (NegativeDiagonal, Mixin), {}),
        TypeError,
        "Late: expected Mixin, which defines map, before NegativeDiagonal in the order of its "
        "bases",
    ),
    "an inverted transform": (NEGATED.inv, ValueError, f"{COPIED}_InverseTransform(...)"),
    "a transform that remembers": (Remembering(), ValueError, f"{COPIED}Remembering()"),
    "a map that fails": (own(fails), RuntimeError, "of the user's own"),
    "an inverse that fails": (own(inverse=fails), RuntimeError, "of the user's own"),
}
BESIDE: Values = {
    f"{name} beside an instance": (
        {"map": NegExpDiagonal(0.5), name: bad},
        ValueError,
        f"map: expected an instance to bring its own options, got {name}={bad!r} beside "
        f"NegExpDiagonal(margin=0.5)",
    )
    for name, bad in (("margin", 0.1), ("dims", ()), ("blocks", 3), ("infeasible", "error"))
}


def registering(module: nn.Module, map: Any) -> nn.Module:
    return register_negative_diagonal(module, map=map)


HELPER = "register_negative_diagonal"
ROWS: Table = {
    **given(
        HELPER,
        lambda: linear(-7.0),
        registering,
        {
            label: (bad, ValueError, f"weight: expected {message}; got {MATRIX}")
            for label, (bad, message) in NO_MAPS.items()
        },
    ),
    **given(f"{HELPER}, as map", linear, registering, OTHERS),
    **given(HELPER, linear, lambda m, options: register_negative_diagonal(m, **options), BESIDE),
    **{
        f"{HELPER}: what fails for the second of two, {value}": Bad(
            make,
            lambda model: register_negative_diagonal(model, "*.weight", map=SHALLOW),
            ValueError,
            f"1.weight: expected {WAY_BACK.format(value)}; got {MATRIX}",
        )
        for make, value in ((lambda: two(-2.0, -7.0), -7), (after_a_chain, -14))
    },
    "remove_negative_diagonal: what fails for the second of two": Bad(
        moody,
        lambda model: remove_negative_diagonal(model, "*.weight"),
        RuntimeError,
        "of the user's own",
    ),
}
