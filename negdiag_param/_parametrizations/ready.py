"""The ready maps: minus an exponential, minus a softplus, a reflection."""

from negdiag_param._maths.maps import Exp, SignFlip, Softplus
from negdiag_param._parametrizations.base import NegativeDiagonal


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
        W_{ii} = -(\text{margin} + \log(1 + \exp X_{ii}))

    In plain words: nearly linear for large entries, exponential near zero, so no step is ever
    larger than the optimizer's own. Weight decay pulls the entries to -0.693 - margin.

    Shape, initial value, Args and Raises: see :class:`NegativeDiagonal`.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(2, 2), map=NegSoftplusDiagonal)
        >>> layer.weight = torch.tensor([[-1.0, 5.0], [6.0, -2.0]])
        >>> torch.nn.functional.softplus(layer.parametrizations.weight.original[0, 0]).item()
        1.0

    Source: De et al. 2024, Griffin and the RG-LRU (arXiv:2402.19427).
    """

    _closed_form = Softplus()


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
