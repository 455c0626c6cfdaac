"""The parametrization module: a scalar map on a diagonal."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from negdiag_param._maths.diagonal import Taps
from negdiag_param._maths.feasible import Infeasible
from negdiag_param._maths.kernel import mapped
from negdiag_param._maths.limits import Limits
from negdiag_param._maths.scalar_map import ScalarMap
from negdiag_param._maths.strict import StrictMap
from negdiag_param._parametrizations import mark
from negdiag_param._parametrizations.cache import WeightCache
from negdiag_param._parametrizations.invert import check, dtype_of, inverted
from negdiag_param._parametrizations.options import Options
from negdiag_param._parametrizations.overriding import scalar_map
from negdiag_param._parametrizations.record import Record
from negdiag_param._parametrizations.steps import Homes
from negdiag_param._ranks import shards
from negdiag_param._torch_private import own_buffers, own_modules, own_parameters


class NegativeDiagonal(nn.Module):
    r"""Keeps the diagonal of a weight negative through a scalar map of an unconstrained tensor.

    .. math::
        W_{ii} = \operatorname{map}(X_{ii}) - \text{margin}, \qquad W_{ij} = X_{ij} \quad (i \ne j)

    In plain words: the optimizer trains ``X`` freely; what the layer sees has a diagonal that is
    strictly negative and at most ``-margin`` at every step, and everything else of ``X`` as it is.
    Subclasses give the scalar map and its inverse; the first of the ready ones is
    :class:`ClampDiagonal`.

    Attach it with :func:`register_negative_diagonal`, or with
    :func:`torch.nn.utils.parametrize.register_parametrization`. Only the former infers the groups
    of a convolution and the gates of an RNN, refuses ambiguous weights of three and more
    dimensions (here they mean ``dims=(0, 1)``), protects the shape on assignment, and makes
    copies, pickles, plain checkpoints and ``reset_parameters`` work.

    Shape:
        - Original and weight: any shape that has the dimensions ``dims``, the same for both. A
          matrix of r rows and c columns has a diagonal of min(r, c) entries.

    Initial value: the weight's own. Its infeasible diagonal entries follow ``infeasible``.

    Args:
        margin: every diagonal entry is at most ``-margin``, and strictly negative.
        dims: the row and the column dimension of the matrix; ``()`` makes every entry diagonal.
            None means ``()`` for one dimension and ``(0, 1)`` for more.
        taps: ``"all"`` kernel positions of a convolution, or only the ``"center"`` one, which for
            stride 1 and "same" zero padding is the main diagonal of the convolution as a matrix.
        blocks: how many matrices are stacked along the row dimension, each with its diagonal.
            None means 1, or what the helper infers.
        infeasible: what assigning a diagonal entry that is not below ``-margin`` does:
            ``"warn"`` reflects it, ``d -> -|d|``, and warns; ``"reflect"`` is silent; ``"error"``
            raises. An entry that lands on or inside the boundary starts a little outside of it.
        cache_in_eval: in eval mode without gradients, compute the weight once and reuse it until
            the original changes. Writes through ``.data`` go unnoticed, hence off by default.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> class NegSquareplusDiagonal(NegativeDiagonal):
        ...     def map(self, x):
        ...         return -(x + (x * x + 4).sqrt()) / 2
        ...     def inverse(self, d):
        ...         return 1 / d - d
        >>> layer = register_negative_diagonal(nn.Linear(3, 3), map=NegSquareplusDiagonal)
        >>> bool((layer.weight.diagonal() < 0).all())
        True
    """

    _closed_form: ScalarMap  # of a ready class, there before __init__ asks for it

    def __init__(
        self,
        margin: float = 0.0,
        dims: tuple[int, ...] | None = None,
        taps: Taps = "all",
        blocks: int | None = None,
        infeasible: Infeasible = "warn",
        cache_in_eval: bool = False,
    ) -> None:
        super().__init__()
        self.options = Options(margin, dims, taps, blocks, infeasible, cache_in_eval)
        self.record = Record()
        chosen = scalar_map(self, NegativeDiagonal, self._own_name)
        self.strict = StrictMap(chosen, self.options.margin)
        self.cache = WeightCache()
        self.homes = Homes() if self.strict.is_projection else None

    def map(self, x: Tensor) -> Tensor:
        """The scalar map, entry by entry: from any real to a negative number.

        ``margin`` is subtracted from the result; rounding to zero or overflow is mended.
        """
        return self._closed_form.value(x, Limits.of(dtype_of(x), 0.0))

    def inverse(self, d: Tensor) -> Tensor:
        """The inverse of :meth:`map`, entry by entry: from a negative number to a real."""
        return self._closed_form.inverse(d, Limits.of(dtype_of(d), 0.0))

    @override
    def forward(self, original: Tensor) -> Tensor:
        """The weight for an unconstrained ``original`` of the same shape and dtype."""
        if self.options.cache_in_eval and not torch.compiler.is_compiling():
            return self._remembered(original)
        return self._constrained(original)

    def right_inverse(self, weight: Tensor, infeasible: Infeasible | None = None) -> Tensor:
        """An ``original`` that gives ``weight``, which it never aliases.

        Args:
            weight: what the layer shall see.
            infeasible: a policy in place of the option of that name.

        Raises:
            TypeError: if ``weight`` is not a dense, real floating-point tensor.
            ValueError: if ``dims``, ``taps``, ``blocks`` or ``margin`` do not fit ``weight``, its
                diagonal holds NaN or infinity, or is infeasible and ``infeasible="error"``.
        """
        self.cache.drop()
        original = inverted(
            weight,
            self.options.diagonal,
            self.strict,
            infeasible or self.options.infeasible,
            self.record.name,
        )
        if self.record.ndim is None:
            self.record = replace(self.record, ndim=original.ndim)
        return original

    def entries(self, original: Tensor) -> Tensor:
        """The mapped diagonal of ``original`` alone, differentiable, in O(n).

        A distributed ``original`` is gathered.
        """
        check(original, self.options.diagonal, self.strict, self.record.name)
        return mapped(self.options.diagonal.view(shards.whole(original)), self.strict)

    @override
    def get_extra_state(self) -> Tensor:
        """What the map is, with all that changes what an original means, for checkpoints."""
        return mark.encode(self._meaning())

    @override
    def set_extra_state(self, state: object) -> None:
        """Refuses a state that was written under another map.

        Raises:
            ValueError: if ``state`` was not written by a parametrization like this one.
        """
        found = mark.mismatch(state, self._meaning())
        if found:
            raise ValueError(f"{self.record.name}: {found}")

    @override
    def extra_repr(self) -> str:
        """The map's constants, and the options that differ from their defaults."""
        constants = self.strict.scalar_map.constants.items()
        shown = [*(f"{name}={value!r}" for name, value in constants), str(self.options)]
        return ", ".join(filter(None, shown))

    @override
    def train(self, mode: bool = True) -> Self:
        """As for every module; in addition drops the cached weight."""
        self.cache.drop()
        return super().train(mode)

    def _constrained(self, original: Tensor) -> Tensor:
        try:
            return shards.constrain(original, self.options.diagonal, self.strict, self.record.name)
        except Exception:
            # Nothing is checked beforehand, which would cost more than the map of a small layer.
            check(original, self.options.diagonal, self.strict, self.record.name)
            raise

    def _remembered(self, original: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            self.cache.drop()
            return self._constrained(original)
        sources = [original, *self._own_tensors()]
        return self.cache.read(self, sources, lambda: self._constrained(original))

    def _meaning(self) -> mark.Meaning:
        chosen = self.strict.scalar_map
        # What a map has learnt lies beside it in the checkpoint.
        values = () if self._own_tensors() else chosen.sampled()
        return mark.Meaning.of(chosen.name, chosen.constants, self.options, values)

    def _own_tensors(self) -> list[Tensor]:
        """What a map of the user's computes with."""
        if own_parameters(self) or own_buffers(self) or own_modules(self):
            return [*self.parameters(), *self.buffers()]
        return []

    def _own_name(self) -> str:
        """What a map of the user's is called in checkpoints and messages."""
        return type(self).__name__
