"""The ready maps: for each, the formula with its derivative, and the class that users see.

``value`` is the map itself, ``value_and_slope`` the map with its first derivative, and ``smooth`` a
function that has all derivatives of the map and no overflow of its own.
"""

from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from negdiag_param import _private
from negdiag_param._maths.limits import Limits
from negdiag_param._maths.strict import ScalarMap
from negdiag_param._parametrization.options import OptionsDict, checked_constant, options_shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal


class _Clamp(ScalarMap):
    name = "clamp"
    is_projection = True

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return x.clamp(max=limits.bound)

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value.clamp(max=limits.bound)

    def highest(self, limits: Limits) -> float:
        return limits.bound

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return x  # also beyond the bound, where an entry would be stuck otherwise


class ClampDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative as clamping it after every optimizer step does.

    .. math::
        W_{ii} = \min(X_{ii}, -\text{margin})

    In plain words: the original is the weight itself. What a step moves beyond the boundary is set
    to it right after the step, by every :class:`torch.optim.Optimizer`: projected gradient
    descent, so training, weight decay, averages and checkpoints are those of a plain layer that is
    clamped after each step, bit for bit. In addition the weight is clamped at every reading, so
    nobody ever sees an infeasible one. Without a margin the boundary is the negative number
    closest to zero that is not subnormal.

    The slope counts as 1 for every original (a straight-through estimator), so an entry at or
    beyond the boundary moves as any other. Where no optimizer of PyTorch steps (``p -= lr *
    p.grad`` by hand, optimizers on ``torch.func`` tensors, master weights kept elsewhere), the
    original is not set to the boundary: the weight is feasible all the same, but an original that
    has gone far beyond takes as many steps back.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=ClampDiagonal, margin=0.5)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> layer.parametrizations.weight.original
        Parameter containing:
        tensor([[-1.,  5.],
                [ 6., -2.]], requires_grad=True)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> (-layer.weight.diagonal()).sum().backward()
        >>> optimizer.step()  # by 1 upwards
        >>> layer.parametrizations.weight.original.diagonal()
        tensor([-0.5000, -1.0000], grad_fn=<DiagonalBackward0>)

    Source: Bertsekas 1976, On the Goldstein-Levitin-Polyak gradient projection method;
    ``torch.clamp_`` after each step, as in https://discuss.pytorch.org/t/177339
    """

    scalar_map = _Clamp()


class _Exp(ScalarMap):
    name = "exp"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return lowered(x.exp().neg(), limits)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # Beyond the steepest slope the map goes on as a straight line. Only the slope of that
        # line counts; its value, which could overflow, is taken out.
        corner = log(limits.steepest)
        beyond = (x - corner).relu()
        return -x.clamp(max=corner).exp() - limits.steepest * (beyond - beyond.detach())

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        # The slope is not value + margin, which is inexact where the margin is the larger part.
        value = x.exp().neg_()
        slope = value.clamp(min=-limits.steepest)
        return lowered(value, limits), slope


class NegExpDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative through minus an exponential.

    .. math::
        W_{ii} = -(\text{margin} + \exp X_{ii})

    In plain words: the original holds logarithms, so a gradient step changes a diagonal entry by
    a factor. This is the form of ``A = -exp(A_log)`` in state-space models. Weight decay pulls
    the entries to -1 - margin.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=NegExpDiagonal)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> layer.parametrizations.weight.original.diagonal().exp().tolist()
        [1.0, 2.0]

    Source: https://discuss.pytorch.org/t/177339 ; Gu & Dao 2023, Mamba (arXiv:2312.00752).
    """

    scalar_map = _Exp()


class _Softplus(ScalarMap):
    name = "softplus"

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta
        self.constants = {} if beta == 1 else {"beta": beta}

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if _private.is_exporting() or torch.onnx.is_in_onnx_export():
            # ONNX has an exact softplus, but no log1p.
            value = F.softplus(x, self.beta, _STRAIGHT).neg()
        else:
            value = self._minus_softplus(x)
        return lowered(value, limits)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), where no derivative overflows
        return -x.relu() - F.softplus(minus_abs(x), self.beta)

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        value = self._minus_softplus(x)
        if torch.compiler.is_compiling():  # inductor's expm1 cancels near zero
            # -sigmoid(x) = -1 / (1 + exp(-x)) = -exp(x) / (1 + exp(x)): on either side the one
            # where nothing overflows or cancels
            z = (self.beta * minus_abs(x)).exp()
            slope = -torch.where(x > 0, 1.0, z) / (1.0 + z)
        else:
            # -sigmoid(x) = 1 / (1 + exp(x)) - 1 = exp(-softplus(x)) - 1, in a single pass
            slope = (value if self.beta == 1 else value * self.beta).expm1()
        return lowered(value, limits), slope

    def _minus_softplus(self, x: Tensor) -> Tensor:
        if self.beta == 1:
            return torch.maximum(x.clamp_max(_STRAIGHT).exp().log1p(), x).neg()
        curved = (self.beta * x).clamp_max(_STRAIGHT).exp().log1p() / self.beta
        return torch.maximum(curved, x).neg()


# Above it, log(1 + exp(x)) is x to the last bit of float64; below it, exp does not overflow.
_STRAIGHT = 40.0


class NegSoftplusDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative through minus a softplus.

    .. math::
        W_{ii} = -(\text{margin} + \log(1 + \exp(\beta X_{ii})) / \beta)

    In plain words: nearly linear for entries beyond ``1 / beta``, exponential nearer to zero, so
    no step is ever larger than the optimizer's own. Weight decay pulls the entries to
    ``-0.693 / beta - margin``.

    Shape, initial value, Raises and the other Args: see :class:`NegativeDiagonal`.

    Args:
        beta: as in :class:`torch.nn.Softplus`. Entries much smaller than ``1 / beta`` hardly move
            under SGD.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map="softplus", beta=10.0)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> original = layer.parametrizations.weight.original
        >>> torch.nn.functional.softplus(original[0, 0], beta=10.0).item()
        1.0

    Source: De et al. 2024, Griffin and the RG-LRU (arXiv:2402.19427).
    """

    scalar_map = _Softplus()

    @options_shown
    def __init__(
        self, margin: float = 0.0, *, beta: float = 1.0, **options: Unpack[OptionsDict]
    ) -> None:
        self.scalar_map = _Softplus(checked_constant("beta", beta))
        super().__init__(margin, **options)


class _Square(ScalarMap):
    name = "square"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        a = -minus_abs(x) if x.requires_grad else x.abs()
        return lowered(torch.rsub(a, -_LEAST) * a, limits)

    def highest(self, limits: Limits) -> float:
        return 0.0

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # Beyond the corner the map goes on as a straight line, of which only the slope counts.
        corner = _corner(limits)
        below = minus_abs(x)
        beyond = (below + corner).clamp(max=0.0)
        a = -below.clamp(min=-corner)
        line = (2.0 * corner + _LEAST) * (beyond - beyond.detach())
        return torch.rsub(a, -_LEAST) * a + line

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        a = x.abs()
        value = torch.rsub(a, -_LEAST).mul_(a)
        slope = a.clamp_(max=_corner(limits)).mul_(2.0).add_(_LEAST)
        return lowered(value, limits), slope.copysign_(0.0 - x)  # 0.0, not -0.0, at either zero


# The slope at x = 0, so that no entry ever gets stuck there.
_LEAST = 0.01


def _corner(limits: Limits) -> float:
    """Where the value is half the largest one; the slope stays what it is there."""
    return sqrt(-limits.lowest / 2.0)


class NegSquareDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative through minus a square.

    .. math::
        W_{ii} = -(\text{margin} + |X_{ii}| (|X_{ii}| + 1 / 100))

    In plain words: the larger an entry, the faster it moves, which suits Adam and entries of
    very different sizes, and asks for small steps under SGD. The linear part keeps a slope of
    1/100 at zero, so that no entry sticks there. Weight decay pulls the entries to ``-margin``.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=NegSquareDiagonal)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -4.0]])
        >>> layer.parametrizations.weight.original.diagonal()
        tensor([-0.9950, -1.9950], grad_fn=<DiagonalBackward0>)

    Source: this package's study, ``python -m tests.benchmarks.training``.
    """

    scalar_map = _Square()


class _SignFlip(ScalarMap):
    name = "sign_flip"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if not limits.margin:
            return x.abs().neg()
        return torch.where(x > limits.bound, -2.0 * limits.margin - x, x)

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value

    def highest(self, limits: Limits) -> float:
        return limits.bound

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        return self.value(x, limits), torch.where(self._is_reflected(x, limits), -1.0, 1.0)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return torch.where(self._is_reflected(x, limits), -x, x)

    @staticmethod
    def _is_reflected(x: Tensor, limits: Limits) -> Tensor:
        # The corner itself has the slope of the feasible side: there an entry is never stuck.
        return x > (limits.bound if limits.margin else 0.0)


class SignFlipDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative by reflecting it about ``-margin`` where it is not.

    .. math::
        W_{ii} = -\text{margin} - |X_{ii} + \text{margin}|

    In plain words: the original is the weight as long as that is feasible, bit for bit; beyond
    the boundary it counts as its mirror image. The slope is 1 or -1 and never 0, also at the
    boundary. Weight decay pulls the entries to -2 margin, the boundary if that is zero.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=SignFlipDiagonal)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> layer.parametrizations.weight.original
        Parameter containing:
        tensor([[-1.,  5.],
                [ 6., -2.]], requires_grad=True)

    Source: https://discuss.pytorch.org/t/177339
    """

    scalar_map = _SignFlip()


def lowered(value: Tensor, limits: Limits) -> Tensor:
    """``value`` less the margin."""
    return value - limits.margin if limits.margin else value


def minus_abs(x: Tensor) -> Tensor:
    """``-|x|``, with the derivative 1 at zero, that of its left side."""
    return torch.where(x > 0, -x, x)


_CLASSES = ClampDiagonal, NegExpDiagonal, NegSoftplusDiagonal, NegSquareDiagonal, SignFlipDiagonal
READY: dict[str, type[NegativeDiagonal]] = {cls.scalar_map.name: cls for cls in _CLASSES}
