"""Negative diagonals for PyTorch weights, throughout training."""

from negdiag_param._doors.diagonals import negative_diagonals
from negdiag_param._doors.init import init_
from negdiag_param._doors.plain import plain_state_dict
from negdiag_param._doors.register import register_negative_diagonal, remove_negative_diagonal
from negdiag_param._parametrization.maps import (
    ClampDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    NegSquareDiagonal,
    SignFlipDiagonal,
)
from negdiag_param._parametrization.parametrization import NegativeDiagonal

__all__ = [
    "ClampDiagonal",
    "NegExpDiagonal",
    "NegSoftplusDiagonal",
    "NegSquareDiagonal",
    "NegativeDiagonal",
    "SignFlipDiagonal",
    "init_",
    "negative_diagonals",
    "plain_state_dict",
    "register_negative_diagonal",
    "remove_negative_diagonal",
]
__version__ = "0.3.0"

for _name in __all__:
    # Pickles and help() know this door only, wherever a room behind it moves.
    globals()[_name].__module__ = __name__
