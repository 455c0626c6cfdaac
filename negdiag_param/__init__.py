"""Negative diagonals for PyTorch weights, throughout training.

    layer = register_negative_diagonal(nn.Linear(3, 3), "weight")

register_negative_diagonal  keeps a diagonal negative from now on
remove_negative_diagonal    ends that; the weight keeps its current value
negative_diagonals          the diagonals of a model, to log or to penalise
init_                       runs a torch.nn.init function on such a weight
plain_state_dict            a checkpoint for the model without registration

The maps, parametrizations that make a diagonal entry (here for margin=0):

ClampDiagonal        map="clamp"      min(x, 0), also for x after each step
NegExpDiagonal       map="exp"        -exp(x)
NegSoftplusDiagonal  map="softplus"   -log(1 + exp(beta x)) / beta
NegSquareDiagonal    map="square"     -|x| (|x| + 0.01)
SignFlipDiagonal     map="sign_flip"  -|x|
NegativeDiagonal     the base class, for a map of your own

help(negdiag_param.init_), for example, shows one in full.
"""

from negdiag_param._doors.public import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
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
