"""From a target and a template to a checked parametrization, before anything changes."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from typing_extensions import Unpack

from negdiag_param._doors import layers
from negdiag_param._doors.targets import Target
from negdiag_param._life import lookup
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._parametrizations.base import NegativeDiagonal
from negdiag_param._parametrizations.invert import check, dense, judged
from negdiag_param._parametrizations.options import MapOptionsDict, Options, OptionsDict
from negdiag_param._parametrizations.ready import (
    ClampDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    NegSquareDiagonal,
    SignFlipDiagonal,
)
from negdiag_param._parametrizations.record import Record
from negdiag_param._parametrizations.transform import TransformDiagonal
from negdiag_param._ranks import shards
from negdiag_param._torch_private import non_persistent_buffers

MapName = Literal["clamp", "exp", "softplus", "square", "sign_flip"]
Map: TypeAlias = MapName | type[NegativeDiagonal] | NegativeDiagonal | Transform

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_MAPS: dict[str, type[NegativeDiagonal]] = {
    "clamp": ClampDiagonal,
    "exp": NegExpDiagonal,
    "softplus": NegSoftplusDiagonal,
    "square": NegSquareDiagonal,
    "sign_flip": SignFlipDiagonal,
}


def template(map: object, **options: Unpack[MapOptionsDict]) -> NegativeDiagonal:
    """The parametrization that ``map`` and the options describe, for tensors of any shape.

    Raises:
        TypeError: if ``map`` is of no kind that is known, or an option of the wrong type, or one
            that the map does not have.
        ValueError: if ``map`` or an option is out of its range, or an instance meets options.
    """
    if isinstance(map, str) and map not in _MAPS:
        raise ValueError(f"map: expected one of {', '.join(_MAPS)}, got {map!r}")
    chosen = _MAPS[map] if isinstance(map, str) else map
    given: dict[str, Any] = {**options}
    if isinstance(chosen, type) and issubclass(chosen, NegativeDiagonal):
        _check_known(chosen, given)
        return chosen(**given)
    if isinstance(chosen, Transform):
        _check_known(TransformDiagonal, given)
        return TransformDiagonal(chosen, **given)
    if isinstance(chosen, NegativeDiagonal):
        _check_known(type(chosen), given)
        others = [name for name in given if name not in OptionsDict.__annotations__]
        constants = {name: given.pop(name) for name in others}
        clash = {**Options(**given).changed(), **constants}
        if clash:
            shown = ", ".join(f"{name}={value!r}" for name, value in clash.items())
            raise ValueError(
                f"map: expected an instance to bring its own options, got {shown} "
                f"beside {type(chosen).__name__}({chosen.extra_repr()})"
            )
        return chosen
    raise TypeError(
        f"map: expected one of {', '.join(_MAPS)}, a NegativeDiagonal class or instance, or a "
        f"torch.distributions Transform, got {map!r}"
    )


def _check_known(cls: type[NegativeDiagonal], options: Mapping[str, object]) -> None:
    """Refuses options that no constructor of ``cls`` names."""
    known: dict[str, None] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        known |= dict.fromkeys(name for name, p in parameters.items() if p.kind in _NAMED)
        if base is NegativeDiagonal:
            break
    for name in options.keys() - known.keys():
        raise TypeError(
            f"{name}: expected an option of {cls.__name__}, which are {', '.join(known)}, got "
            f"{name}={options[name]!r}"
        )


def planned(target: Target, template: NegativeDiagonal) -> NegativeDiagonal:
    """The parametrization for one tensor, which is checked and still as it was.

    Raises:
        TypeError: if the tensor or its module cannot carry one.
        ValueError: if it carries one already, or the options do not fit it.
    """
    name, owner, tensor_name, _ = target
    if isinstance(owner, torch.jit.ScriptModule):
        raise TypeError(f"{name}: expected a module in Python, got a {type(owner).__name__}")
    if hasattr(nn.ModuleDict(), tensor_name):
        raise ValueError(
            f"{name}: expected a name that an nn.ModuleDict can hold, where parametrizations are "
            f"kept, got {tensor_name!r}, which is an attribute of it"
        )
    if lookup.find(owner, tensor_name):
        raise ValueError(f"{name}: expected a tensor not registered yet, got one that is")
    stored = dense(target.stored[0], name)
    _check_writable(stored, name)
    with torch.no_grad():
        tensor = target.tensor
    parametrization = copy.deepcopy(template)
    persistent = tensor_name not in non_persistent_buffers(owner)
    parametrization.record = Record(
        name, lookup.own_tensors(owner), persistent, tensor.ndim, shards.mesh_dims(stored)
    )
    parametrization.options = _fitted(template.options, target, tensor.ndim)
    options = parametrization.options
    check(tensor, options.diagonal, parametrization.strict, name)
    if not shards.is_sharded(tensor):  # what ranks share they judge together, in registering
        judged(tensor, options.diagonal, parametrization.strict, options.at_registration, name)
    layers.check_gradient(owner, name)
    if template.options.taps == "center":
        layers.check_center(owner, tensor_name, name)
    return parametrization


def _check_writable(stored: Tensor, name: str) -> None:
    """Refuses what cannot hold an original, which every entry and every step writes to.

    Raises:
        ValueError: if entries share memory, or the tensor takes no gradients.
    """
    found = f"got shape {tuple(stored.shape)}, {stored.dtype}"
    if stored.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name}: expected a tensor made outside of torch.inference_mode(), {found}, made in it"
        )
    if _may_overlap(stored):
        raise ValueError(
            f"{name}: expected a tensor whose entries have a memory of their own, {found} with "
            f"strides {stored.stride()}; make it contiguous first"
        )


def _may_overlap(stored: Tensor) -> bool:
    """Whether a step along one dimension is no longer than the reach of all shorter ones."""
    reach = 0
    for step, n in sorted(zip(stored.stride(), stored.shape, strict=True)):
        if n > 1 and step <= reach:
            return stored.numel() > 0
        reach += (n - 1) * step
    return False


def _fitted(options: Options, target: Target, ndim: int) -> Options:
    """The options with what the layer says of dims and blocks."""
    name, owner, tensor_name, _ = target
    if options.dims is None and ndim > 2 and not layers.has_kernel(owner, tensor_name):
        tensor = target.tensor
        raise ValueError(
            f"{name}: expected dims, such as dims=(-2, -1), for a tensor of {ndim} "
            f"dimensions, got none; shape {tuple(tensor.shape)}, {tensor.dtype}"
        )
    if any(not -ndim <= dim < ndim for dim in options.dims or ()):
        return options  # refused below, as they were given
    resolved = options.diagonal.resolved(ndim)
    if len(set(resolved)) < len(resolved):
        return options
    blocks = options.blocks
    if blocks is None and resolved == (0, 1):
        blocks = layers.blocks(owner, tensor_name)
    # In one form only, so that checkpoints of the same meaning carry the same mark.
    natural = Diagonal().resolved(ndim)
    return replace(
        options,
        dims=None if resolved == natural else resolved,
        blocks=None if blocks == 1 else blocks,
    )
