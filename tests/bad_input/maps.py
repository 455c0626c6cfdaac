"""Maps of no kind that is known, and users' maps that are none."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transforms as T

from negdiag_param import NegativeDiagonal, NegExpDiagonal, register_negative_diagonal
from tests.bad_input.table import MATRIX, Bad, Table
from tests.support.modules import linear

Function = Callable[[Any, Tensor], Any]
KNOWN = "clamp, exp, softplus, square, sign_flip"
LIKE = "shape (3,), torch.float32"


def _exp(_: object, x: Tensor) -> Tensor:
    return -x.exp()


def _log(_: object, d: Tensor) -> Tensor:
    return (-d).log()


def _fails(*_: object) -> Tensor:
    raise RuntimeError("of the user's own")


def _is_missing(*_: object) -> Tensor:
    raise NotImplementedError("not yet")


def own(map: Function = _exp, inverse: Function = _log) -> type[NegativeDiagonal]:
    return type("Own", (NegativeDiagonal,), {"map": map, "inverse": inverse})


def _returns(found: str, what: str = "map") -> str:
    return f"the {what} of Own to return {LIKE} for such a tensor, got {found}"


def _values(values: str, name: str = "Own") -> str:
    return f"a map from the reals to the negative numbers, got {name} with values up to {values}"


def _way_back(name: str, values: str = "-7 and -7") -> str:
    return (
        f"an inverse that reaches the diagonal, but the inverse of {name} does not lead back to "
        f"values between {values}"
    )


def _reach(ends: str, name: str) -> str:
    return (
        f"a diagonal between {ends}, which is what {name} reaches, got 3 of 3 entries beyond, from "
        f"-7 to -7"
    )


NEGATED = T.AffineTransform(0.0, -1.0)
# The layer's diagonal is -7.
NO_MAPS: dict[str, tuple[Any, str]] = {
    "a map to none": (own(lambda _, x: None), _returns("NoneType")),
    "a map to a float": (own(lambda _, x: -1.0), _returns("float")),
    "a map to arrays": (own(lambda _, x: -x.exp().numpy()), _returns("ndarray")),
    "a map to its first": (own(lambda _, x: -x[:1]), _returns("shape (1,), torch.float32")),
    "a map to a sum": (own(lambda _, x: -x.sum()), _returns("shape (), torch.float32")),
    "a map to integers": (own(lambda _, x: -x.int()), _returns("shape (3,), torch.int32")),
    "a map to float64": (own(lambda _, x: -x.double()), _returns("shape (3,), torch.float64")),
    "a complex map": (own(lambda _, x: -x.cfloat()), _returns("shape (3,), torch.complex64")),
    "a map to NaN": (own(lambda _, x: x * math.nan), _values("nan at -8")),
    "a map to infinity": (own(lambda _, x: x - math.inf), _values("-inf at -8")),
    "a positive map": (own(lambda _, x: x.exp()), _values("0.000335463 at -8")),
    "the identity": (own(lambda _, x: x, lambda _, d: d), _values("0.1 at 0.1")),
    "a map that is NaN below zero": (own(lambda _, x: -x.sqrt()), _values("nan at -8")),
    "a map in place": (
        own(lambda _, x: x.exp_().neg_()),
        "a map that leaves its argument as it is, got Own, which writes to it",
    ),
    "a constant": (own(lambda _, x: x * 0 - 1), _reach("-1 and -1", "Own")),
    "an inverse to none": (own(_exp, lambda _, d: None), _returns("NoneType", "inverse")),
    "an inverse to a float": (own(_exp, lambda _, d: 0.0), _returns("float", "inverse")),
    "an inverse to its first": (
        own(_exp, lambda _, d: d[:1]),
        _returns("shape (1,), torch.float32", "inverse"),
    ),
    "an inverse to integers": (
        own(_exp, lambda _, d: d.int()),
        _returns("shape (3,), torch.int32", "inverse"),
    ),
    "an inverse to NaN": (own(_exp, lambda _, d: d.log()), _way_back("Own")),
    "an inverse of another map": (own(_exp, lambda _, d: d), _way_back("Own")),
    "an inverse that is not there": (
        own(_exp, _is_missing),
        "an inverse of Own, got NotImplementedError('not yet')",
    ),
    "an exponential": (T.ExpTransform(), _values("0.000335463 at -8", "ExpTransform()")),
    "a sigmoid": (T.SigmoidTransform(), _values("0.00033535 at -8", "SigmoidTransform()")),
    "a power": (T.PowerTransform(2.0), _values("64 at -8", "PowerTransform()")),
    "a softmax": (T.SoftmaxTransform(), _values("0.333333 at -8", "SoftmaxTransform()")),
    "no transform": (T.identity_transform, _values("0.1 at 0.1", "ComposeTransform( )")),
    "a stick": (
        T.StickBreakingTransform(),
        f"the map of StickBreakingTransform() to return {LIKE} for such a tensor, got shape (4,), "
        f"torch.float32",
    ),
    "a bounded transform": (
        T.ComposeTransform([T.SigmoidTransform(), NEGATED]),
        _reach("-1 and ...", "ComposeTransform( SigmoidTransform(), AffineTransform() )"),
    ),
}


class Remembering(T.Transform):
    """A transform of a user's own, which cannot forget."""

    def __init__(self) -> None:
        super().__init__(cache_size=1)


class Mixin:
    def map(self, x: Tensor) -> Tensor:
        return -x.exp()


KIND = (
    f"map: expected one of {KNOWN}, a NegativeDiagonal class or instance, or a torch.distributions"
)
COPIED = "map: expected a transform that can be copied, without .inv and with cache_size=0, got "
OTHERS: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown name": ("expp", ValueError, f"map: expected one of {KNOWN}, got 'expp'"),
    "an empty name": ("", ValueError, f"map: expected one of {KNOWN}, got ''"),
    "no map": (None, TypeError, f"{KIND} Transform, got None"),
    "a number": (3, TypeError, f"{KIND} Transform, got 3"),
    "a function": (torch.exp, TypeError, f"{KIND} Transform, got <built-in method exp ...>"),
    "a list of maps": ([], TypeError, f"{KIND} Transform, got []"),
    "another module": (nn.Identity(), TypeError, f"{KIND} Transform, got Identity()"),
    "another class": (nn.Linear, TypeError, f"{KIND} Transform, got <class '...Linear'>"),
    "the base itself": (
        NegativeDiagonal,
        NotImplementedError,
        "NegativeDiagonal must define map and inverse",
    ),
    "a map without an inverse": (
        type("Half", (NegativeDiagonal,), {"map": _exp}),
        NotImplementedError,
        "Half must define inverse",
    ),
    "an inverse without a map": (
        type("Half", (NegativeDiagonal,), {"inverse": _log}),
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
    "a map that fails": (own(_fails), RuntimeError, "of the user's own"),
    "an inverse that fails": (own(_exp, _fails), RuntimeError, "of the user's own"),
}
CLASHES = {"margin": 0.1, "dims": (), "taps": "center", "blocks": 3, "infeasible": "error"}

ROWS: Table = {
    **{
        f"register_negative_diagonal: {label}": Bad(
            lambda: linear(-7.0),
            lambda module, given=given: register_negative_diagonal(module, map=given),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for label, (given, message) in NO_MAPS.items()
    },
    **{
        f"register_negative_diagonal: {label} as map": Bad(
            linear,
            lambda module, given=given: register_negative_diagonal(module, map=given),
            error,
            message,
        )
        for label, (given, error, message) in OTHERS.items()
    },
    **{
        f"register_negative_diagonal: {name} beside an instance": Bad(
            linear,
            lambda module, given={name: value}: register_negative_diagonal(
                module, map=NegExpDiagonal(0.5), **given
            ),
            ValueError,
            f"map: expected an instance to bring its own options, got {name}={value!r} beside "
            f"NegExpDiagonal(margin=0.5)",
        )
        for name, value in CLASHES.items()
    },
}
