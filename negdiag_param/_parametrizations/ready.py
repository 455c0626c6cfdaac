"""The ready maps."""

from negdiag_param._maths.diagonal import Taps
from negdiag_param._maths.exp import Exp
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._maths.sign_flip import SignFlip
from negdiag_param._maths.smooth_abs import SmoothAbs
from negdiag_param._maths.softplus import Softplus
from negdiag_param._maths.square import Square
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.options import checked_constant


class NegSmoothAbsDiagonal(NegativeDiagonal):
    r"""Keeps a diagonal negative through minus an absolute value with a rounded corner.

    .. math::
        W_{ii} = -\Bigl(\text{margin}
            + |X_{ii}| \frac{|X_{ii}| + \delta / 100}{|X_{ii}| + \delta}\Bigr)

    In plain words: away from the boundary the original moves as the weight itself would, with a
    slope up to 1; within ``delta`` of it the slope falls to 1/100, so that entries come to rest
    there instead of bouncing, and never stick. Weight decay pulls the entries to ``-margin``, as
    it pulls a plain weight to zero.

    Shape, initial value, Raises and the other Args: see :class:`NegativeDiagonal`.

    Args:
        delta: how wide the corner is. The default suits diagonals from 0.01 to 100 and steps of
            ordinary size; take a tenth of the size that yours have.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=NegSmoothAbsDiagonal)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> layer.parametrizations.weight.original.diagonal()
        tensor([-1.0472, -2.0483], grad_fn=<DiagonalBackward0>)

    Source: this package's study, ``python -m tests.benchmarks.training``.
    """

    def __init__(
        self,
        margin: float = 0.0,
        dims: tuple[int, ...] | None = None,
        taps: Taps = "all",
        blocks: int | None = None,
        infeasible: Infeasible = "warn",
        cache_in_eval: bool = False,
        rest: float | None = None,
        *,
        delta: float = 0.05,
    ) -> None:
        self._closed_form = SmoothAbs(checked_constant("delta", delta))
        super().__init__(margin, dims, taps, blocks, infeasible, cache_in_eval, rest)


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
        rest: float | None = None,
        *,
        beta: float = 1.0,
    ) -> None:
        self._closed_form = Softplus(checked_constant("beta", beta))
        super().__init__(margin, dims, taps, blocks, infeasible, cache_in_eval, rest)


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
