"""The ready maps: for each, the formula with its derivative, and the class that users see."""

from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from negdiag_param import _private
from negdiag_param._maths.limits import Limits
from negdiag_param._maths.strict import ScalarMap
from negdiag_param._parametrization.options import OptionsDict, checked_number, options_shown
from negdiag_param._parametrization.parametrization import NegativeDiagonal


class _Clamp(ScalarMap):
    name = "clamp"
    is_projection = True

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        return x  # which StrictMap clamps

    smooth = value  # also beyond the bound, where an entry would be stuck otherwise

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value.clamp(max=limits.bound)

    def highest(self, limits: Limits) -> float:
        return limits.bound


class ClampDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative as clamping it after every optimizer step does.

    .. math::
        W_{ii} = \min(X_{ii}, -\text{margin})

    In plain words: the original is the weight itself. What a step of any
    :class:`torch.optim.Optimizer` moves beyond the boundary is set to it right after the step:
    projected gradient descent. Training, weight decay, averages and checkpoints are those of a
    plain layer that is clamped after each step, bit for bit. Without a margin the boundary is the
    negative number closest to zero that is not subnormal.

    The weight is clamped at every reading as well, with the slope 1 for every original (a
    straight-through estimator). Where no optimizer of PyTorch steps (``p -= lr * p.grad`` by hand,
    optimizers on ``torch.func`` tensors, master weights kept elsewhere), the weight is feasible all
    the same, but an original that has gone far beyond the boundary takes as many steps back.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=ClampDiagonal, margin=0.5)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
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

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        # The slope is not value + margin, which is inexact where the margin is the larger part.
        value = x.exp().neg_()
        slope = value.clamp(min=-limits.steepest)
        return lowered(value, limits), slope

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        corner = log(limits.steepest)
        return -x.clamp(max=corner).exp() - limits.steepest * beyond(x, corner)


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


# Above it, log(1 + exp(x)) is x to the last bit of float64; below it, exp does not overflow.
_STRAIGHT = 40.0


class _Softplus(ScalarMap):
    name = "softplus"

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta
        self.constants = {} if beta == 1 else {"beta": beta}

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        if _private.is_exporting() or torch.onnx.is_in_onnx_export():
            # ONNX has an exact softplus, but no log1p.
            return lowered(F.softplus(x, self.beta, _STRAIGHT).neg(), limits)
        return lowered(self._minus_softplus(x), limits)

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        value = self._minus_softplus(x)
        if torch.compiler.is_compiling():  # inductor's expm1 cancels near zero
            # -sigmoid(x) = -1 / (1 + exp(-x)) = -exp(x) / (1 + exp(x)): on either side the one
            # where nothing overflows or cancels
            z = (-self.beta * x.abs()).exp()
            slope = -torch.where(x > 0, 1.0, z) / (1.0 + z)
        else:
            # -sigmoid(x) = 1 / (1 + exp(x)) - 1 = exp(-softplus(x)) - 1, in a single pass
            slope = (value if self.beta == 1 else value * self.beta).expm1()
        return lowered(value, limits), slope

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)): no derivative overflows. At zero, where
        # max(x, 0) has the slope 0, -|x| has the slope 1.
        return -x.relu() - F.softplus(torch.where(x > 0, -x, x), self.beta)

    def _minus_softplus(self, x: Tensor) -> Tensor:
        curved = x.clamp_max(_STRAIGHT / self.beta)
        if self.beta == 1:
            curved = curved.exp().log1p()
        else:
            curved = (self.beta * curved).exp().log1p() / self.beta
        return torch.maximum(curved, x).neg()


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
        self.scalar_map = _Softplus(
            checked_number("beta", beta, 1e-6, 1e6, "a number between 1e-6 and 1e6")
        )
        super().__init__(margin, **options)


# The slope at x = 0, so that no entry ever gets stuck there.
_LEAST = 0.01


class _Square(ScalarMap):
    name = "square"

    def value(self, x: Tensor, limits: Limits) -> Tensor:
        size = x.abs()
        return lowered(torch.rsub(size, -_LEAST) * size, limits)

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        size = x.abs()
        factor = torch.rsub(size, -_LEAST)
        slope = (factor - size).clamp_(min=-_LEAST - 2.0 * self._corner(limits))
        # 0.0 - x is 0.0 at either zero, not -0.0.
        return lowered(factor.mul_(size), limits), slope.copysign_(0.0 - x)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        size, corner = torch.where(x > 0, x, -x), self._corner(limits)  # at zero with the slope -1
        near = size.clamp(max=corner)
        return torch.rsub(near, -_LEAST) * near - (_LEAST + 2.0 * corner) * beyond(size, corner)

    def highest(self, limits: Limits) -> float:
        return 0.0

    def _corner(self, limits: Limits) -> float:
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
        return torch.minimum(x, _mirrored(x, limits))

    def value_and_slope(self, x: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        mirrored = _mirrored(x, limits)
        # The corner itself has the slope of the feasible side: there an entry is never stuck.
        return torch.minimum(x, mirrored), torch.where(x > mirrored, -1.0, 1.0)

    def smooth(self, x: Tensor, limits: Limits) -> Tensor:
        return x * torch.where(x > _mirrored(x.detach(), limits), -1.0, 1.0)

    def inverse(self, value: Tensor, limits: Limits) -> Tensor:
        return value

    def highest(self, limits: Limits) -> float:
        return limits.bound


def _mirrored(x: Tensor, limits: Limits) -> Tensor:
    return -2.0 * limits.margin - x if limits.margin else -x


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


def beyond(x: Tensor, corner: float) -> Tensor:
    """Zero, with the slope 1 beyond the corner, where a map goes on as a straight line.

    Only the slope of that line counts; its value, which could overflow, is taken out.
    """
    line = (x - corner).relu()
    return line - line.detach()


_CLASSES = ClampDiagonal, NegExpDiagonal, NegSoftplusDiagonal, NegSquareDiagonal, SignFlipDiagonal
READY: dict[str, type[NegativeDiagonal]] = {cls.scalar_map.name: cls for cls in _CLASSES}
