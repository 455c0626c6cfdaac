"""Options of the wrong type or out of range, at every door that takes them."""

import math
from typing import Any

import torch

from negdiag_param import (
    NegExpDiagonal,
    NegSoftplusDiagonal,
    register_negative_diagonal,
)
from tests.bad_input.table import MATRIX, Bad, Table
from tests.support.modules import OwnSquareDiagonal, linear
from tests.support.tables import BUILT_IN, neg_softplus_transform

NUMBER = "margin: expected a number, got "
RANGE = "margin: expected a finite number that is not negative, got "
DIMS = "dims: expected a tuple of two integers or (), got "
TAPS = "taps: expected one of ('all', 'center'), got "
BLOCKS = "blocks: expected an integer, got "
POLICY = "infeasible: expected one of ('warn', 'reflect', 'error'), got "
CACHE = "cache_in_eval: expected True or False, got "

OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a margin of text": ({"margin": "1"}, TypeError, NUMBER + "str"),
    "no margin": ({"margin": None}, TypeError, NUMBER + "NoneType"),
    "a true margin": ({"margin": True}, TypeError, NUMBER + "bool"),
    "a complex margin": ({"margin": 1j}, TypeError, NUMBER + "complex"),
    "a list of margins": ({"margin": [0.1]}, TypeError, NUMBER + "list"),
    "a margin in a tensor": ({"margin": torch.tensor(0.1)}, TypeError, NUMBER + "Tensor"),
    "a NaN margin": ({"margin": math.nan}, ValueError, RANGE + "nan"),
    "an infinite margin": ({"margin": math.inf}, ValueError, RANGE + "inf"),
    "a negative margin": ({"margin": -0.1}, ValueError, RANGE + "-0.1"),
    "a margin beyond all floats": ({"margin": 10**400}, ValueError, RANGE + "1000..."),
    "one dim": ({"dims": 0}, TypeError, DIMS + "0"),
    "dims of text": ({"dims": "01"}, TypeError, DIMS + "'01'"),
    "dims of floats": ({"dims": (0.0, 1)}, TypeError, DIMS + "(0.0, 1)"),
    "dims of truth values": ({"dims": (True, False)}, TypeError, DIMS + "(True, False)"),
    "dims half given": ({"dims": (0, None)}, TypeError, DIMS + "(0, None)"),
    "dims in a set": ({"dims": {0, 1}}, TypeError, DIMS + "{0, 1}"),
    "dims in a tensor": ({"dims": torch.tensor([0, 1])}, TypeError, DIMS + "tensor([0, 1])"),
    "a single dim": ({"dims": (0,)}, ValueError, "dims: expected two dimensions or none, got (0,)"),
    "three dims": (
        {"dims": (0, 1, 2)},
        ValueError,
        "dims: expected two dimensions or none, got (0, 1, 2)",
    ),
    "unknown taps": ({"taps": "centre"}, ValueError, TAPS + "'centre'"),
    "no taps": ({"taps": None}, TypeError, TAPS + "NoneType"),
    "a list of taps": ({"taps": ["all"]}, TypeError, TAPS + "list"),
    "half a block": ({"blocks": 0.5}, TypeError, BLOCKS + "float"),
    "blocks of text": ({"blocks": "2"}, TypeError, BLOCKS + "str"),
    "true blocks": ({"blocks": True}, TypeError, BLOCKS + "bool"),
    "blocks in a tensor": ({"blocks": torch.tensor(3)}, TypeError, BLOCKS + "Tensor"),
    "no blocks": ({"blocks": 0}, ValueError, "blocks: expected at least 1, got 0"),
    "negative blocks": ({"blocks": -1}, ValueError, "blocks: expected at least 1, got -1"),
    "an unknown policy": ({"infeasible": "ignore"}, ValueError, POLICY + "'ignore'"),
    "no policy": ({"infeasible": None}, TypeError, POLICY + "NoneType"),
    "a true policy": ({"infeasible": True}, TypeError, POLICY + "bool"),
    "a cache of text": ({"cache_in_eval": "no"}, TypeError, CACHE + "'no'"),
    "a cache of one": ({"cache_in_eval": 1}, TypeError, CACHE + "1"),
    "no cache": ({"cache_in_eval": None}, TypeError, CACHE + "None"),
}
MAPS: dict[str, Any] = {
    "a name": "softplus",
    "a class": OwnSquareDiagonal,
    "an instance": NegExpDiagonal(),
    "a transform": neg_softplus_transform(),
}
CLASSES = {
    **{cls.__name__: cls for cls in BUILT_IN.values()},
    "NegativeDiagonal": OwnSquareDiagonal,
}
# Of the maps that have a constant.
CONSTANTS = {
    "text": ("1", TypeError, "a number, got str"),
    "none": (None, TypeError, "a number, got NoneType"),
    "true": (True, TypeError, "a number, got bool"),
    "zero": (0.0, ValueError, "a number between 1e-6 and 1e6, got 0.0"),
    "negative": (-1.0, ValueError, "a number between 1e-6 and 1e6, got -1.0"),
    "NaN": (math.nan, ValueError, "a number between 1e-6 and 1e6, got nan"),
    "huge": (10**400, ValueError, "a number between 1e-6 and 1e6, got 1000..."),
}
HAVE_ONE = {"beta": NegSoftplusDiagonal}
UNKNOWN = {"a misspelt option": "margins", "the constant of another map": "beta"}
KNOWN = "margin, dims, taps, blocks, dominance, infeasible, cache_in_eval"
# What is fit in itself, but not for a Linear(3, 3).
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "dims out of range": ({"dims": (0, 2)}, "dims within 2 dimensions, got dims=(0, 2)"),
    "dims below range": ({"dims": (-3, 0)}, "dims within 2 dimensions, got dims=(-3, 0)"),
    "one dim twice": ({"dims": (1, 1)}, "two different dims, got dims=(1, 1)"),
    "one dim under two names": ({"dims": (1, -1)}, "two different dims, got dims=(1, -1)"),
    "blocks that do not divide": (
        {"blocks": 2},
        "blocks to divide the 3 rows of dimension 0, got blocks=2",
    ),
    "blocks of all entries": (
        {"dims": (), "blocks": 3},
        "blocks=1 where every entry is diagonal, got blocks=3",
    ),
    "the center of a matrix": (
        {"taps": "center"},
        "kernel dimensions after dims=(0, 1) for taps='center', found none",
    ),
    "a margin beyond float32": (
        {"margin": 1e39},
        "a margin that torch.float32 can keep clear of its largest value, got margin=1e+39",
    ),
}


def _at_every_door() -> Table:
    rows: Table = {}
    for label, (options, error, message) in OPTIONS.items():
        for kind, given in MAPS.items():
            rows[f"register_negative_diagonal: {label}, with {kind}"] = Bad(
                linear,
                lambda module, given={"map": given, **options}: register_negative_diagonal(
                    module, **given
                ),
                error,
                message,
            )
        for name, cls in CLASSES.items():
            rows[f"{name}: {label}"] = Bad(
                linear, lambda _, cls=cls, o=options: cls(**o), error, message
            )
    return rows


ROWS: Table = {
    **_at_every_door(),
    **{
        f"{cls.__name__}: a {name} that is {label}": Bad(
            linear,
            lambda _, cls=cls, given={name: value}: cls(**given),
            error,
            f"{name}: expected {message}",
        )
        for name, cls in HAVE_ONE.items()
        for label, (value, error, message) in CONSTANTS.items()
    },
    **{
        f"register_negative_diagonal: {label}": Bad(
            linear,
            lambda module, given={name: 0.1}: register_negative_diagonal(
                module, map="exp", **given
            ),
            TypeError,
            f"{name}: expected an option of NegExpDiagonal, which are {KNOWN}, got {name}=0.1",
        )
        for label, name in UNKNOWN.items()
    },
    "NegExpDiagonal: a misspelt option": Bad(
        linear,
        lambda _: NegExpDiagonal(margins=0.1),
        TypeError,
        "...__init__() got an unexpected keyword argument 'margins'...",
    ),
    **{
        f"register_negative_diagonal: {label}": Bad(
            linear,
            lambda module, o=options: register_negative_diagonal(module, **o),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for label, (options, message) in UNFIT.items()
    },
    **{
        f"NegExpDiagonal.{call}: {label}": Bad(
            lambda options=options: NegExpDiagonal(**options),
            lambda made, call=call: getattr(made, call)(-torch.ones(3, 3)),
            ValueError,
            f"weight: expected {message}; got {MATRIX}",
        )
        for call in ("forward", "right_inverse", "entries")
        for label, (options, message) in UNFIT.items()
    },
}
