"""The parametrization module: a scalar map on a diagonal."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack, override

from negdiag_param._maths.dominance import Dominance
from negdiag_param._maths.feasible import INFEASIBLE, Infeasible
from negdiag_param._maths.limits import FLOAT_DTYPES
from negdiag_param._maths.strict import ScalarMap, StrictMap
from negdiag_param._parametrization import custom, mark
from negdiag_param._parametrization.cache import WeightCache
from negdiag_param._parametrization.invert import check, dense, described, inverted
from negdiag_param._parametrization.options import (
    Options,
    OptionsDict,
    check_choice,
    options_shown,
    shown,
)
from negdiag_param._parametrization.steps import Homes
from negdiag_param._private import ChecksCasts, own_buffers, own_modules, own_parameters, warn_user
from negdiag_param._ranks import shards


@dataclass(frozen=True)
class Record:
    """What the helper knows of a registration beside the options."""

    name: str = "weight"  # of the tensor, for messages
    order: tuple[str, ...] = ()  # the tensors of its module, as they stood before
    persistent: bool = True  # whether the tensor is in checkpoints
    ndim: int | None = None  # of the tensor
    mesh_dims: int = 0  # of the mesh it was distributed over before fully_shard


class NegativeDiagonal(ChecksCasts):
    r"""Keeps the diagonal of a weight negative through a scalar map of an unconstrained tensor.

    .. math::
        W_{ii} = \operatorname{map}(X_{ii}) - \text{margin}, \qquad W_{ij} = X_{ij} \quad (i \ne j)

    In plain words: the optimizer trains the original ``X`` freely. The layer sees a weight whose
    diagonal is strictly negative and at most ``-margin`` at every step, and which is ``X``
    everywhere else. Subclasses define ``map`` and ``inverse``; the ready ones begin with
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

    The arguments are those of :func:`register_negative_diagonal`. In addition:

    Args:
        dims: None means ``()`` for one dimension and ``(0, 1)`` for more.
        blocks: None means 1, or what the helper infers.
        dominance: ``"rows"`` or ``"columns"`` lowers each mapped diagonal entry by the absolute sum
            of the others in its row or column, so that every eigenvalue has a real part of at most
            ``-margin``; in a norm of its own ``exp(W t)`` never exceeds ``exp(-margin t)``, the
            infinity norm for rows, the 1-norm for columns. ``"scaled"`` weighs entry (i, j) with
            ``exp(eta_j - eta_i)``, where ``eta`` is a parameter of this module that starts at zero.
            For square matrices, batches and blocks of them, and the convolutions of as many
            outputs as inputs per group with ``taps="center"``; the rows of a transposed
            convolution are its inputs. Where a sum exceeds the dtype's largest number, the
            diagonal is the lowest finite one, and does not dominate.
        infeasible: without the helper it holds for the registration as well, and ``"warn"`` warns
            of each default initialisation. With ``dominance``, entries are lowered silently where
            only rounding asks for it.

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

    scalar_map: ScalarMap  # of a ready class; those of users define map and inverse instead
    eta: nn.Parameter | None  # the logarithms of the scaling, with dominance="scaled"

    @options_shown
    def __init__(self, margin: float = 0.0, **options: Unpack[OptionsDict]) -> None:
        super().__init__()
        self.options = Options(margin, **options)
        self.record = Record()
        chosen = custom.chosen(self, NegativeDiagonal)
        self.strict = StrictMap(chosen, self.options.margin)
        self.cache = WeightCache()
        self.homes = Homes() if chosen.is_projection else None
        if self.options.dominance == "scaled":
            self.register_parameter("eta", None)  # until the shape is known

    def map(self, x: Tensor) -> Tensor:
        """The scalar map, entry by entry: from any real to a negative number.

        ``margin`` is subtracted from the result; rounding to zero or overflow is mended.
        """
        return StrictMap(self.scalar_map, 0.0).mapped(dense(x))

    def inverse(self, d: Tensor) -> Tensor:
        """The inverse of :meth:`map`, entry by entry: from a negative number to a real."""
        return StrictMap(self.scalar_map, 0.0).inverse(dense(d))

    @override
    def forward(self, original: Tensor) -> Tensor:
        """The weight for an unconstrained ``original`` of the same shape and dtype."""
        if self.options.cache_in_eval and not torch.compiler.is_compiling():
            if not (self.training or torch.is_grad_enabled()):
                sources = [original, *self._own_tensors()]
                return self.cache.read(self, sources, lambda: self._constrained(original))
            self.cache.drop()
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
        original, scaling = self._inverted(weight, infeasible)
        with torch.no_grad():
            for eta, value in scaling:
                eta.copy_(value)
        return original

    def _inverted(
        self, weight: Tensor, infeasible: Infeasible | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """An original that gives ``weight``, and the scaling with what to write into it, if any."""
        self.cache.drop()
        policy, name = infeasible or self.options.infeasible, self.record.name
        if policy != "initial":
            check_choice("infeasible", policy, INFEASIBLE)
        with described(name):
            original, warning, eta = inverted(
                weight, self.options.diagonal, self.strict, policy, self._dominance
            )
        if warning:
            warn_user(f"{name}: {warning}; to keep such values, remove_negative_diagonal first")
        if self.record.ndim is None:
            self.record = replace(self.record, ndim=original.ndim)
        if eta is None:
            return original, []
        if self.eta is None:
            self.eta = nn.Parameter(eta.clone())
        return original, [(self.eta, eta)]

    def entries(self, original: Tensor) -> Tensor:
        """The mapped diagonal of ``original`` alone, differentiable, in O(n).

        With ``dominance`` it takes the whole weight. A distributed ``original`` is gathered.
        """
        diagonal, dominance = self.options.diagonal, self._dominance
        original = shards.whole(original)
        with described(self.record.name):
            check(original, diagonal, self.strict, dominance)
        if not dominance:
            return self.strict.mapped(diagonal.view(original))
        if dominance.eta is not None:
            dominance = Dominance(dominance.kind, shards.whole(dominance.eta))
        return diagonal.view(shards.constrain(original, diagonal, self.strict, dominance))

    @override
    def get_extra_state(self) -> Tensor:
        """What the map is, with all that changes what an original means, for checkpoints."""
        return mark.encode(self._meaning)

    @override
    def set_extra_state(self, state: object) -> None:
        """Raises a ValueError if ``state`` was written under another map."""
        difference = mark.mismatch(state, self._meaning)
        if difference:
            raise ValueError(f"{self.record.name}: {difference}")

    @override
    def extra_repr(self) -> str:
        """The map's constants, and the options that differ from their defaults."""
        return shown({**self.strict.scalar_map.constants, **self.options.changed()})

    @override
    def train(self, mode: bool = True) -> Self:
        """As for every module; in addition drops the cached weight."""
        self.cache.drop()
        return super().train(mode)

    @override
    def check_cast(self, dtype: torch.dtype) -> None:
        if dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{self.record.name}: expected a cast to float16, bfloat16, float32 or float64, "
                f"got {dtype}"
            )

    def __prepare_scriptable__(self) -> nn.Module:
        raise TypeError(
            "expected a module without a negative diagonal for torch.jit.script, got a registered "
            "one; script a baked copy, which remove_negative_diagonal(copy.deepcopy(model), ...) "
            "gives, or use torch.export"
        )

    def _constrained(self, original: Tensor) -> Tensor:
        try:
            return shards.constrain(original, self.options.diagonal, self.strict, self._dominance)
        except Exception as error:
            # Checking beforehand would cost more than the map of a small layer.
            with described(self.record.name):
                check(original, self.options.diagonal, self.strict, self._dominance)
            if isinstance(error, AttributeError):
                # Python would take it for a sign that the module has no such tensor.
                raise RuntimeError(f"{self.record.name}: AttributeError: {error}") from error
            raise

    @property
    def _dominance(self) -> Dominance | None:
        """What the diagonal is lowered by, with the present scaling; None if it is not."""
        kind = self.options.dominance
        return Dominance(kind, self.eta if kind == "scaled" else None) if kind else None

    @property
    def _meaning(self) -> str:
        """The text of the mark. What a map has learnt lies beside it in the checkpoint."""
        chosen = self.strict.scalar_map
        learns = len(self._own_tensors()) > (self.options.dominance == "scaled")
        return mark.meaning(chosen, self.options, () if learns else chosen.sampled())

    def _own_tensors(self) -> list[Tensor]:
        """The parameters and buffers of this module, with which a user's map computes."""
        any_own = own_parameters(self) or own_buffers(self) or own_modules(self)
        return [*self.parameters(), *self.buffers()] if any_own else []
