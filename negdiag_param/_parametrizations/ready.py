"""The ready maps."""

from negdiag_param._maths.clamp import Clamp
from negdiag_param._maths.diagonal import Taps
from negdiag_param._maths.exp import Exp
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._maths.sign_flip import SignFlip
from negdiag_param._maths.softplus import Softplus
from negdiag_param._maths.square import Square
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.options import checked_constant


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

    _closed_form = Clamp()


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

    _closed_form = Exp()


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

    def __init__(
        self,
        margin: float = 0.0,
        dims: tuple[int, ...] | None = None,
        taps: Taps = "all",
        blocks: int | None = None,
        infeasible: Infeasible = "warn",
        cache_in_eval: bool = False,
        *,
        beta: float = 1.0,
    ) -> None:
        self._closed_form = Softplus(checked_constant("beta", beta))
        super().__init__(margin, dims, taps, blocks, infeasible, cache_in_eval)


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

    _closed_form = Square()


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

    _closed_form = SignFlip()
