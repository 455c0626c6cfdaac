"""Negative diagonals for PyTorch weights, throughout training."""

from negdiag_param._checkpoints import plain_state_dict
from negdiag_param._initialisers import init_
from negdiag_param._monitoring import negative_diagonals
from negdiag_param._parametrizations import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    SignFlipDiagonal,
)
from negdiag_param._registration import register_negative_diagonal, remove_negative_diagonal

__all__ = [
    "NegExpDiagonal",
    "NegSoftplusDiagonal",
    "NegativeDiagonal",
    "SignFlipDiagonal",
    "init_",
    "negative_diagonals",
    "plain_state_dict",
    "register_negative_diagonal",
    "remove_negative_diagonal",
]
__version__ = "0.1.0"
