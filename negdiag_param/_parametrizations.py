"""The parametrization modules: a scalar map put on a diagonal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from negdiag_param import _arguments, _kernel, _sharded
from negdiag_param._diagonal import TAPS, Diagonal, Taps
from negdiag_param._feasible import INFEASIBLE, Infeasible, feasible
from negdiag_param._maps import FLOAT_DTYPES, Exp, Limits, ScalarMap, SignFlip, Softplus, widened
from negdiag_param._snapshot import Snapshot

_MARK_BYTES = 192


class NegativeDiagonal(nn.Module):
    r"""Keeps the diagonal of a weight negative through a scalar map of an unconstrained tensor.

    .. math::
        W_{ii} = \operatorname{map}(X_{ii}) - \text{margin}, \qquad W_{ij} = X_{ij} \quad (i \ne j)

    In plain words: the optimizer trains ``X`` freely; what the layer sees has a diagonal that is
    strictly negative and at most ``-margin`` at every step, and everything else of ``X`` as it is.
    Subclasses give the scalar map and its inverse; ready ones are :class:`NegExpDiagonal`,
    :class:`NegSoftplusDiagonal` and :class:`SignFlipDiagonal`.

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
        infeasible: what assigning a diagonal entry that is not below ``-margin`` does:
            ``"warn"`` reflects it, ``d -> -|d|``, and warns; ``"reflect"`` is silent; ``"error"``
            raises. An entry that lands on or inside the boundary starts a little outside of it.
        cache_in_eval: in eval mode without gradients, compute the weight once and reuse it until
            the original changes. Writes through ``.data`` go unnoticed, hence off by default.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> class NegSquareDiagonal(NegativeDiagonal):
        ...     def map(self, x):
        ...         return -x.square() - 1e-6
        ...     def inverse(self, d):
        ...         return (-d - 1e-6).clamp(min=0).sqrt()
        >>> layer = register_negative_diagonal(nn.Linear(3, 3), map=NegSquareDiagonal)
        >>> bool((layer.weight.diagonal() < 0).all())
        True
    """

    closed_form: ClassVar[ScalarMap | None] = None

    def __init__(
        self,
        margin: float = 0.0,
        dims: tuple[int, ...] | None = None,
        taps: Taps = "all",
        blocks: int = 1,
        infeasible: Infeasible = "warn",
        cache_in_eval: bool = False,
    ) -> None:
        super().__init__()
        self.margin = _arguments.checked_margin(margin)
        self.diagonal = Diagonal(
            _arguments.checked_dims(dims), _arguments.checked_blocks(blocks), taps
        )
        _arguments.check_choice("taps", taps, TAPS)
        _arguments.check_choice("infeasible", infeasible, INFEASIBLE)
        self.infeasible: Infeasible = infeasible
        self.cache_in_eval = cache_in_eval
        # What the helper knows: the tensor's name for messages, where it stood among the tensors
        # of its module, and the hook that lets plain checkpoints in.
        self.tensor_name = "weight"
        self.order: tuple[str, ...] = ()
        self.hook: RemovableHandle | None = None
        self._limits = {dtype: Limits.of(dtype, self.margin) for dtype in FLOAT_DTYPES}
        self._snapshot: Snapshot | None = None
        self._registering = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Whichever comes first in the order of inheritance: an own map, or a closed form.
        first = next((c for c in cls.__mro__ if {"map", "closed_form"} & vars(c).keys()), cls)
        if "closed_form" not in vars(first):
            cls.closed_form = None

    def map(self, x: Tensor) -> Tensor:
        """The scalar map, entry by entry: from any real to a negative number.

        ``margin`` is subtracted from the result; rounding to zero or overflow is mended.
        """
        raise NotImplementedError(f"{type(self).__name__} must define map(self, x)")

    def inverse(self, d: Tensor) -> Tensor:
        """The inverse of :meth:`map`, entry by entry: from a negative number to a real."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse(self, d)")

    def forward(self, original: Tensor) -> Tensor:
        """The weight for an unconstrained ``original`` of the same shape and dtype."""
        if self.cache_in_eval and not torch.compiler.is_compiling():
            snapshot = self._snapshot  # read once: another thread may drop it
            if torch.is_grad_enabled() or self.training:
                self._snapshot = None
            elif snapshot is not None and snapshot.is_fresh(original):
                return snapshot.weight
            elif Snapshot.supports(original) and not _sharded.is_in_motion(self):
                return self._remembered(original)
        return self._constrained(original)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """An ``original`` that gives ``weight``, which it never aliases.

        Raises:
            TypeError: if ``weight`` is not a dense, real floating-point tensor.
            ValueError: if ``dims``, ``taps``, ``blocks`` or ``margin`` do not fit ``weight``, its
                diagonal holds NaN or infinity, or is infeasible and ``infeasible="error"``.
        """
        return self.inverted(weight, self.infeasible)

    def inverted(self, weight: Tensor, infeasible: Infeasible) -> Tensor:
        """:meth:`right_inverse` under another policy for infeasible entries."""
        self.check(weight)
        self._snapshot = None
        with torch.no_grad():
            # A registration keeps the strides of the layer, not those of an assigned view.
            layout = torch.preserve_format if self._registering else _memory_format(weight)
            original = weight.detach().clone(memory_format=layout)
            local, parts = _sharded.local(original, self.diagonal, self.tensor_name)
            for diagonal in parts:
                entries = diagonal.view(local)
                entries.copy_(self.inverse_entries(entries, infeasible))
        return original

    def entries(self, original: Tensor) -> Tensor:
        """The mapped diagonal of ``original`` alone, differentiable, in O(n).

        A distributed ``original`` is gathered.
        """
        return _kernel.mapped(self.diagonal.view(_sharded.whole(original)), self)

    def check(self, tensor: object) -> None:
        """Refuses what this parametrization cannot be put on, saying what was expected."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self.tensor_name}: expected a tensor, got {type(tensor).__name__}")
        found = f"got shape {tuple(tensor.shape)}, {tensor.dtype}"
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise TypeError(
                f"{self.tensor_name}: expected a dense tensor, {found}, "
                f"layout {tensor.layout}{' (quantized)' if tensor.is_quantized else ''}"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{self.tensor_name}: expected float16, bfloat16, float32 or float64, {found}"
            )
        misfit = self.diagonal.misfit(tensor.shape)
        if misfit:
            raise ValueError(f"{self.tensor_name}: {misfit}; {found}")
        self._limits_in(tensor.dtype)
        _sharded.check(tensor, self.diagonal, self.tensor_name)

    @property
    def map_name(self) -> str:
        """What the map is called in checkpoints and messages."""
        return self.closed_form.name if self.closed_form else type(self).__name__

    @property
    def silently(self) -> Infeasible:
        """The policy where a default-initialised tensor comes in: no warnings."""
        return "error" if self.infeasible == "error" else "reflect"

    @property
    def has_slope(self) -> bool:
        """Whether the map comes with its derivative, which the fast kernel needs."""
        return self.closed_form is not None

    def value(self, original: Tensor) -> Tensor:
        """The mapped diagonal for the original one, differentiable by autograd."""
        limits = self._limits_in(original.dtype)
        x = widened(original)
        if self.closed_form is None:
            value = self.map(x) - limits.margin
        else:
            value = self.closed_form.value(x, limits)
        return value.clamp(limits.lowest, limits.bound).to(original.dtype)

    def value_and_slope(self, original: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped diagonal and its derivative, in the dtype that arithmetic runs in."""
        closed_form = self.closed_form
        assert closed_form is not None
        limits = self._limits_in(original.dtype)
        x = widened(original)
        value = closed_form.value(x, limits)
        slope = closed_form.slope(x, value, limits)
        return value.clamp_(limits.lowest, limits.bound), slope

    def slope(self, original: Tensor) -> Tensor:
        """The derivative, differentiable by autograd."""
        assert self.closed_form is not None
        limits = self._limits_in(original.dtype)
        x = widened(original)
        return self.closed_form.slope(x, self.closed_form.value(x, limits), limits)

    def smooth(self, original: Tensor) -> Tensor:
        """A finite function with the derivatives of the map, to any order."""
        assert self.closed_form is not None
        x = widened(original)
        return self.closed_form.smooth(x, self._limits_in(original.dtype)).to(original.dtype)

    def describe(self) -> str:
        """The map with all that changes what an original means; stored in checkpoints."""
        text = f"{self.map_name}(margin={self.margin}"
        if self.diagonal.blocks != 1:
            text += f", blocks={self.diagonal.blocks}"
        if self.diagonal.taps != "all":
            text += f", taps='{self.diagonal.taps}'"
        return text + ")"

    def get_extra_state(self) -> Tensor:
        """:meth:`describe` as a tensor of fixed size, which every checkpoint format takes."""
        text = self.describe().encode("ascii", "replace")[:_MARK_BYTES].ljust(_MARK_BYTES)
        return torch.tensor(list(text), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Refuses a state that was written under another map.

        Raises:
            ValueError: if ``state`` was not written by a parametrization like this one.
        """
        mismatch = self.mismatch(state)
        if mismatch:
            raise ValueError(f"{self.tensor_name}: {mismatch}")

    def mismatch(self, state: Tensor) -> str | None:
        """What keeps a checkpoint with the extra state ``state`` from being loaded, if anything."""
        if state.is_meta:
            return None  # it says nothing
        found = bytes(state.detach().cpu().to(torch.uint8).tolist()).decode("ascii", "replace")
        expected = bytes(self.get_extra_state().tolist()).decode("ascii")
        if found == expected:
            return None
        return f"expected a checkpoint of {expected.strip()}, found one of {found.strip()}"

    @contextmanager
    def registering(self) -> Iterator[None]:
        """The time of a registration: reflects silently and keeps the strides of the layer."""
        previous, self.infeasible, self._registering = self.infeasible, self.silently, True
        try:
            yield
        finally:
            self.infeasible, self._registering = previous, False

    def train(self, mode: bool = True) -> "NegativeDiagonal":
        """As for every module; in addition drops the cached weight."""
        self._snapshot = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        shown = {
            "margin": (self.margin, 0.0),
            "dims": (self.diagonal.dims, None),
            "taps": (self.diagonal.taps, "all"),
            "blocks": (self.diagonal.blocks, 1),
            "infeasible": (self.infeasible, "warn"),
            "cache_in_eval": (self.cache_in_eval, False),
        }
        return ", ".join(f"{k}={v!r}" for k, (v, default) in shown.items() if v != default)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle starts without the cached weight of this instance.
        return {**self.__dict__, "_snapshot": None}

    def _constrained(self, original: Tensor) -> Tensor:
        if _sharded.is_sharded(original):
            return _sharded.constrain(original, self.diagonal, self, self.tensor_name)
        return _kernel.constrain(original, self.diagonal, self)

    def _remembered(self, original: Tensor) -> Tensor:
        # The state of the original is taken before it is read: if another thread writes in
        # between, the snapshot is stale from the start and the next reader makes its own.
        snapshot = Snapshot(original)
        with torch.inference_mode(False), torch.no_grad():
            snapshot.keep(self._constrained(original))
        self._snapshot = snapshot
        return snapshot.weight

    def _limits_in(self, dtype: torch.dtype) -> Limits:
        limits = self._limits.get(dtype)
        if limits is not None:
            return limits
        if dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{self.tensor_name}: expected float16, bfloat16, float32 or float64, got {dtype}"
            )
        raise ValueError(
            f"{self.tensor_name}: expected a margin that {dtype} can keep clear of its largest "
            f"value, got margin={self.margin}"
        )

    def inverse_entries(self, entries: Tensor, infeasible: Infeasible) -> Tensor:
        """The original diagonal that gives ``entries``, after the policy for infeasible ones."""
        limits = self._limits_in(entries.dtype)
        if entries.is_meta:
            return entries
        entries = feasible(entries, limits, infeasible, self.tensor_name)
        value = widened(entries)
        if self.closed_form is not None:
            return self.closed_form.inverse(value, limits)
        return self._judged_inverse(value + limits.margin, limits)

    def _judged_inverse(self, value: Tensor, limits: Limits) -> Tensor:
        """The user's inverse, after a look at whether map and inverse do what they promise."""
        probe = torch.linspace(-8, 8, 65, dtype=value.dtype, device=value.device)
        image = self.map(probe)
        if image.shape != probe.shape or not (image.isfinite() & (image <= 0)).all():
            raise ValueError(
                f"{self.tensor_name}: expected a map from the reals to the negative numbers, got "
                f"{self.map_name} with values up to {image.max().item():.6g} on [-8, 8]"
            )
        value = value.clamp(max=-limits.nearest)
        x = self.inverse(value)
        if not (x.isfinite() & torch.isclose(self.map(x), value, rtol=1e-2, atol=1e-2)).all():
            raise ValueError(
                f"{self.tensor_name}: expected an inverse that reaches the diagonal, but the "
                f"inverse of {self.map_name} does not lead back to values between "
                f"{value.min().item():.6g} and {value.max().item():.6g}"
            )
        return x


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

    closed_form = Exp()


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

    closed_form = Softplus()


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

    closed_form = SignFlip()


class TransformDiagonal(NegativeDiagonal):
    """Keeps a diagonal negative through a ``torch.distributions`` transform."""

    def __init__(self, transform: torch.distributions.Transform, **options: Any) -> None:
        super().__init__(**options)
        self.transform = _uncached(transform)

    def map(self, x: Tensor) -> Tensor:
        """The transform itself."""
        return cast(Tensor, self.transform(x))

    def inverse(self, d: Tensor) -> Tensor:
        """The inverse of the transform."""
        return cast(Tensor, self.transform.inv(d))

    @property
    def map_name(self) -> str:
        """The transform as it prints itself, on one line."""
        return " ".join(repr(self.transform).split())


def _uncached(transform: torch.distributions.Transform) -> torch.distributions.Transform:
    """The transform without its memory of the last tensors, which no copy could take along."""
    if isinstance(transform, torch.distributions.ComposeTransform):
        return torch.distributions.ComposeTransform([_uncached(part) for part in transform.parts])
    return cast(torch.distributions.Transform, transform.with_cache(0))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """That of a contiguous or channels-last tensor; contiguous for a view with other strides."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if (
        channels_last
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=channels_last)
    ):
        return channels_last
    return torch.contiguous_format
