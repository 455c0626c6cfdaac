"""Registering and removing: validation at the door, all or nothing."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn.utils import parametrize

from negdiag_param import _attachment, _checkpoints, _sharded, _targets
from negdiag_param._diagonal import TAPS, Diagonal, Taps
from negdiag_param._feasible import Infeasible
from negdiag_param._parametrizations import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    SignFlipDiagonal,
    TransformDiagonal,
)
from negdiag_param._targets import Target

MapName = Literal["exp", "softplus", "sign_flip"]
Map: TypeAlias = MapName | type[NegativeDiagonal] | NegativeDiagonal | Transform
M = TypeVar("M", bound=nn.Module)

MAPS: dict[str, type[NegativeDiagonal]] = {
    "exp": NegExpDiagonal,
    "softplus": NegSoftplusDiagonal,
    "sign_flip": SignFlipDiagonal,
}
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_GATES: tuple[tuple[type[nn.Module], int], ...] = (
    (nn.LSTM, 4),
    (nn.LSTMCell, 4),
    (nn.GRU, 3),
    (nn.GRUCell, 3),
)


def register_negative_diagonal(
    module: M,
    tensor_name: str = "weight",
    *,
    map: Map = "exp",
    margin: float = 0.0,
    dims: tuple[int, ...] | None = None,
    taps: Taps = "all",
    blocks: int | None = None,
    infeasible: Infeasible = "warn",
    cache_in_eval: bool = False,
) -> M:
    r"""Keeps the diagonal of a layer's weight negative throughout training, in one line.

    .. math::
        W_{ii} = -(\text{margin} + \exp X_{ii}), \qquad W_{ij} = X_{ij} \quad (i \ne j)

    for the default map. In plain words: ``module.weight`` becomes a function of an unconstrained
    tensor, which the optimizer trains; its diagonal is negative at every step and everything else
    is free. The parameter object stays the same, so an optimizer made before still works.
    Assigning to ``module.weight`` sets the weight to that value. Writing into it in place
    (``nn.init.zeros_(module.weight)``) has no effect: use :func:`init_`.

    Shape:
        - Linear: the diagonal of min(rows, columns) entries. Convolutions: the kernels from each
          channel to itself, per group. LSTM and GRU ``weight_hh*``: each gate's own diagonal.

    Initial value: the weight's own, with positive diagonal entries reflected, ``d -> -|d|``. An
    entry on or inside the boundary, such as a zero, starts at ``-(margin + 1e-3)``.

    Args:
        module: the module that holds the tensor, itself or in a submodule.
        tensor_name: a name (``"weight"``), a dotted name (``"encoder.0.weight"``) or a
            shell-style pattern over the names of ``module.named_parameters()``
            (``"encoder.*.weight"``), which skips tensors without a diagonal (one dimension).
        map: ``"exp"``, ``"softplus"``, ``"sign_flip"``, a :class:`NegativeDiagonal` class, an
            instance (used as a template, with its own options), or a
            ``torch.distributions`` transform from the reals to the negative numbers.
        margin: every diagonal entry is at most ``-margin``, and strictly negative.
        dims: the row and the column dimension; ``()`` makes every entry a diagonal entry. None
            means ``()`` for one dimension and ``(0, 1)`` for two and for convolutions; other
            tensors must say.
        taps: ``"all"`` kernel positions of a convolution, or ``"center"``, which for stride 1 and
            "same" zero padding is the main diagonal of the convolution written as a matrix.
        blocks: how many matrices are stacked along the rows, each with its own diagonal. None
            infers the groups of a convolution and the gates of ``weight_hh*``; otherwise 1.
        infeasible: what a later assignment does with diagonal entries that are not below
            ``-margin``: ``"warn"`` reflects and warns, ``"reflect"`` is silent, ``"error"``
            raises, here as well.
        cache_in_eval: in eval mode without gradients, compute the weight once and reuse it until
            the original changes. Writes through ``.data`` go unnoticed.

    Returns:
        ``module``, with its class replaced by one that computes the weight.

    Raises:
        TypeError: if the tensor is not a dense float16, bfloat16, float32 or float64 tensor, or
            an argument is of the wrong type.
        ValueError: if there is no such tensor, it is registered already or tied to another one,
            the options do not fit its shape or dtype, its diagonal holds NaN or infinity, or is
            infeasible under ``infeasible="error"``. The module is left as it was.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(3, 3), "weight", map="softplus")
        >>> bool((layer.weight.diagonal() < 0).all())
        True
        >>> layer.weight = torch.tensor([[-1.0, 2, 3], [4, -5, 6], [7, 8, -9]])
        >>> print(layer.weight.detach())
        tensor([[-1.,  2.,  3.],
                [ 4., -5.,  6.],
                [ 7.,  8., -9.]])

    Source: https://discuss.pytorch.org/t/177339
    """
    options: dict[str, Any] = {
        "margin": margin,
        "dims": dims,
        "taps": taps,
        "blocks": blocks,
        "infeasible": infeasible,
        "cache_in_eval": cache_in_eval,
    }
    found = _targets.targets(module, tensor_name)
    template = _template(map, options)
    if _targets.is_pattern(module, tensor_name) and template.diagonal.dims != ():
        found = [target for target in found if _ndim(target) > 1]
        if not found:
            _targets.refuse_no_match(module, tensor_name, "a diagonal")
    for target in found:
        _sharded.check_registrable(module, target.owner, target.name)
    plans = [(target, _planned(target, template, blocks)) for target in found]
    _targets.check_untied(module, found)
    with _restored_on_failure([target.owner for target in found]):
        for target, parametrization in plans:
            _register(target, parametrization)
    for target, parametrization in plans:
        parametrization.hook = _checkpoints.accept_plain(target.owner, target.tensor_name)
    return module


def remove_negative_diagonal(module: M, tensor_name: str = "weight") -> M:
    """Bakes the current value in and leaves a stock module behind.

    In plain words: the layer gets its first class back, the same parameter object holds what the
    last forward pass saw, bit for bit, and no hook remains. From then on the diagonal is free.

    Args:
        module: the module that was registered, or one that contains it.
        tensor_name: a name, a dotted name or a shell-style pattern, as for
            :func:`register_negative_diagonal`.

    Returns:
        ``module``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a tensor is not there, not registered or cannot be baked in. The module is
            left as it was.

    Example:
        >>> layer = register_negative_diagonal(nn.Linear(3, 3))
        >>> weight = layer.weight
        >>> type(remove_negative_diagonal(layer)) is nn.Linear and layer.weight.equal(weight)
        True
    """
    found = _targets.registered_targets(module, tensor_name)
    hooks = [_attachment.ours(target.owner)[target.tensor_name].hook for target in found]
    for target in found:
        _sharded.check_removable(target.owner, target.name)
    with _restored_on_failure([target.owner for target in found]):
        for target in found:
            _remove(target)
    for hook in hooks:
        if hook is not None:
            hook.remove()
    return module


def _template(map: object, options: dict[str, Any]) -> NegativeDiagonal:
    """The parametrization that ``map`` and the options describe, for tensors of any shape."""
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(map, str):
        if map not in MAPS:
            raise ValueError(f"map: expected one of {', '.join(MAPS)}, got {map!r}")
        return MAPS[map](**given)
    if isinstance(map, type) and issubclass(map, NegativeDiagonal):
        return map(**given)
    if isinstance(map, Transform):
        return TransformDiagonal(map, **given)
    if isinstance(map, NegativeDiagonal):
        defaults = {"margin": 0.0, "taps": TAPS[0], "infeasible": "warn", "cache_in_eval": False}
        clash = [name for name, value in given.items() if value != defaults.get(name)]
        if clash:
            raise ValueError(
                f"map: expected an instance to bring its own options, got {', '.join(clash)} "
                f"beside {type(map).__name__}({map.extra_repr()})"
            )
        return map
    raise TypeError(
        f"map: expected one of {', '.join(MAPS)}, a NegativeDiagonal class or instance, or a "
        f"torch.distributions Transform, got {map!r}"
    )


def _planned(target: Target, template: NegativeDiagonal, blocks: int | None) -> NegativeDiagonal:
    """The parametrization for one tensor, which is checked and still as it was."""
    name, owner, tensor_name = target
    if isinstance(owner, torch.jit.ScriptModule):
        raise TypeError(f"{name}: expected a module in Python, got a {type(owner).__name__}")
    if _attachment.find(owner, tensor_name):
        raise ValueError(f"{name}: expected a tensor not registered yet, got one that is")
    tensor = _checked_tensor(target)
    parametrization = copy.deepcopy(template)
    parametrization.tensor_name = name
    # The first registration on a module still saw all of its tensors in their places.
    earlier = [other.order for other in _attachment.ours(owner).values()]
    parametrization.order = earlier[0] if earlier else (*owner._parameters, *owner._buffers)
    diagonal = template.diagonal
    convolution = isinstance(owner, _CONVOLUTIONS) and tensor_name == "weight"
    if diagonal.dims is None and tensor.ndim > 2 and not convolution:
        raise ValueError(
            f"{name}: expected dims, such as dims=(-2, -1), for a tensor of {tensor.ndim} "
            f"dimensions, got none; shape {tuple(tensor.shape)}, {tensor.dtype}"
        )
    dims = diagonal.resolved(tensor.ndim) if diagonal.dims is None else diagonal.dims
    if blocks is None and diagonal.blocks == 1 and tensor.ndim > 1 and _on_rows(dims, tensor.ndim):
        blocks = _inferred_blocks(owner, tensor_name)
    parametrization.diagonal = Diagonal(dims, blocks or diagonal.blocks, diagonal.taps)
    parametrization.check(tensor)
    if diagonal.taps == "center" and convolution:
        _check_center(owner, name)
    # Trying the inverse finds NaN, infeasible entries and maps that do not do what they promise.
    local, parts = _sharded.local(tensor.detach(), parametrization.diagonal, name)
    for part in parts:
        parametrization.inverse_entries(part.view(local), parametrization.silently)
    return parametrization


def _checked_tensor(target: Target) -> Tensor:
    stored = _attachment.stored(target.owner, target.tensor_name)
    if torch.nn.parameter.is_lazy(stored):
        raise TypeError(
            f"{target.name}: expected an initialized tensor, got {type(stored).__name__}; "
            f"run the lazy module once first"
        )
    with torch.no_grad():
        return target.tensor


def _ndim(target: Target) -> int:
    stored = _attachment.stored(target.owner, target.tensor_name)
    return 2 if torch.nn.parameter.is_lazy(stored) else target.tensor.ndim


def _inferred_blocks(owner: nn.Module, tensor_name: str) -> int:
    if isinstance(owner, _CONVOLUTIONS) and tensor_name == "weight":
        return owner.groups
    if tensor_name.startswith("weight_hh"):
        return next((gates for cls, gates in _GATES if isinstance(owner, cls)), 1)
    return 1


def _on_rows(dims: tuple[int, ...], ndim: int) -> bool:
    """Whether ``dims`` are the two that groups and gates are stacked along."""
    return tuple(dim % ndim for dim in dims) == (0, 1)


def _check_center(owner: Any, name: str) -> None:
    """Refuses a dilated even kernel: the diagonal of its matrix falls between two taps."""
    for size, dilation in zip(owner.kernel_size, owner.dilation, strict=True):
        if size % 2 == 0 and dilation > 1:
            raise ValueError(
                f"{name}: expected an odd kernel size where the dilation is above 1 for "
                f"taps='center', got kernel_size={owner.kernel_size}, dilation={owner.dilation}, "
                f"whose main diagonal no tap reaches"
            )


def _register(target: Target, parametrization: NegativeDiagonal) -> None:
    _, owner, tensor_name = target
    value = target.tensor.detach()
    chained = parametrize.is_parametrized(owner, tensor_name)
    with parametrization.registering():
        parametrize.register_parametrization(owner, tensor_name, parametrization)
        _attachment.attach(owner)
        if chained:
            # parametrize leaves the originals as they are, so the value would jump.
            _attachment.assign(owner, tensor_name, value)


def _remove(target: Target) -> None:
    _, owner, tensor_name = target
    order = _attachment.ours(owner)[tensor_name].order
    parametrize.remove_parametrizations(owner, tensor_name)
    _attachment.in_order(owner._parameters, order)
    _attachment.in_order(owner._buffers, order)


@contextmanager
def _restored_on_failure(owners: list[nn.Module]) -> Iterator[None]:
    """Puts the modules back as they were if the block fails: class, tensors, values, hooks."""
    undo = [_undo(owner) for owner in {id(owner): owner for owner in owners}.values()]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def _undo(owner: nn.Module) -> Callable[[], None]:
    cls = owner.__class__
    modules = [owner]
    if parametrize.is_parametrized(owner):
        modules += [_attachment.chains(owner), *_attachment.chains(owner).values()]
    contents: list[tuple[Any, dict[str, Any]]] = [
        (mapping, dict(mapping))
        for module in modules
        for mapping in (module._parameters, module._buffers, module._modules)
    ]
    values = [
        (tensor, _sharded.backup(tensor))
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and not torch.nn.parameter.is_lazy(tensor)
    ]

    def restore() -> None:
        owner.__class__ = cls
        for mapping, content in contents:
            mapping.clear()
            mapping.update(content)
        with torch.no_grad():
            for tensor, value in values:
                _sharded.restore(tensor, value)

    return restore
