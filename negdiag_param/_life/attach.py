"""Puts a parametrization on a tensor and takes it off.

Either is prepared first, which does all that can fail and changes nothing; what is left only
assigns.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from negdiag_param._life import assign, lookup, registered
from negdiag_param._parametrization.parametrization import NegativeDiagonal
from negdiag_param._private import non_persistent_buffers, own_buffers, own_modules, own_parameters

Change = Callable[[], None]


def registration(
    owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal, value: Tensor
) -> Change:
    """Prepares a registration; the tensor keeps its ``value``, reflected where infeasible."""
    original = parametrization.right_inverse(value, parametrization.options.at_registration)
    if tensor_name not in lookup.lists(owner):
        return partial(_attach, owner, tensor_name, parametrization, original)
    # Another parametrization maps the tensor already, to what ours maps to the same value.
    with torch.inference_mode(False):  # so that what it makes can be trained later
        changes = assign.writes(owner, tensor_name, original)

    def append() -> None:
        lists = lookup.lists(owner)
        lists[tensor_name].append(parametrization.train(owner.training))  # type: ignore[operator]
        for tensor, held in changes:
            _give(tensor, held)
        registered.set_lists(owner, lists)

    return append


def removal(owner: nn.Module, tensor_name: str) -> Change:
    """Prepares the removal of all parametrizations of the tensor; its current value stays."""
    tensor, *others = lookup.originals(owner, tensor_name)
    with torch.inference_mode(False), torch.no_grad():
        value: Tensor = getattr(owner, tensor_name).detach()
    if others:
        trained = any(original.requires_grad for original in (tensor, *others))
        tensor = nn.Parameter(value, trained) if isinstance(tensor, nn.Parameter) else value

    def detach() -> None:
        order, record = lookup.own_tensors(owner), lookup.ours(owner)[tensor_name].record
        if not others:
            _give(tensor, value)
        lists = lookup.lists(owner)
        del lists[tensor_name]
        registered.set_lists(owner, lists)
        is_parameter = isinstance(tensor, nn.Parameter)
        mapping: Any = own_parameters(owner) if is_parameter else own_buffers(owner)
        mapping[tensor_name] = tensor
        lookup.sort(mapping, order)
        if not record.persistent:
            non_persistent_buffers(owner).add(tensor_name)

    return detach


def carry_out(changes: Iterable[Change], owners: Iterable[nn.Module]) -> None:
    """Makes the changes; if one fails, the owners' classes, tensors and values are put back."""
    with torch.no_grad():
        undo = [_undo(owner) for owner in {id(owner): owner for owner in owners}.values()]
    try:
        for change in changes:
            change()
    except BaseException:
        for restore in undo:
            restore()
        raise


def _attach(
    owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal, original: Tensor
) -> None:
    is_parameter = tensor_name in own_parameters(owner)
    tensors_of: Any = own_parameters if is_parameter else own_buffers
    tensor: Tensor = tensors_of(owner).pop(tensor_name)
    stand_in = tensor
    if _is_plain(tensor):
        stand_in = nn.Parameter(original, tensor.requires_grad) if is_parameter else original
    # The list asks for the inverse of the tensor, which is known.
    vars(parametrization)["right_inverse"] = lambda _: original
    found = ParametrizationList([parametrization], stand_in)
    del vars(parametrization)["right_inverse"]
    if stand_in is not tensor:  # the list holds the object that the optimizer knows
        tensors_of(found)["original"] = tensor
        _give(tensor, original)
    parametrization.train(owner.training)
    if parametrization.options.dominance == "scaled" and not tensor.requires_grad:
        parametrization.requires_grad_(False)
    non_persistent_buffers(owner).discard(tensor_name)
    if not parametrization.record.persistent:
        non_persistent_buffers(found).add("original")
        parametrization.register_state_dict_post_hook(_without_mark)  # type: ignore[no-untyped-call]
    registered.set_lists(owner, {**lookup.lists(owner), tensor_name: found})


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)


def _give(tensor: Tensor, value: Tensor) -> None:
    """Gives ``tensor`` the value in storage of its own, laid out as before.

    ``parametrize`` calls ``set_`` for that, which drops the node that accumulates the gradients of
    a parameter, and with it the hooks by which DistributedDataParallel averages them.
    """
    if not _is_plain(tensor):  # subclasses such as DTensor take no data
        assign.carry_out([(tensor, value)])
        return
    if value.stride() != tensor.stride():  # such as those of a transposed weight
        with torch.inference_mode(False):
            laid_out = tensor.detach().new_empty_strided(tensor.shape, tensor.stride())
            value = laid_out.copy_(value)
    tensor.data = value.detach()
    torch.autograd.graph.increment_version(tensor)  # so that existing graphs refuse to use it


def _without_mark(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """A tensor that is not in the checkpoint has no mark there either."""
    state_dict.pop(f"{prefix}_extra_state", None)


def _undo(owner: nn.Module) -> Change:
    cls, volatile = owner.__class__, set(non_persistent_buffers(owner))
    modules = [owner, *lookup.lists(owner).values()]
    kinds: Any = (own_parameters, own_buffers, own_modules)
    contents = [(kind(module), dict(kind(module))) for module in modules for kind in kinds]
    tensors = [
        (tensor, tensor.detach() if _is_plain(tensor) else tensor.clone())
        for module in modules
        for tensor in (*own_parameters(module).values(), *own_buffers(module).values())
        if tensor is not None and not is_lazy(tensor)
    ]

    def restore() -> None:
        owner.__class__ = cls
        non_persistent_buffers(owner).update(volatile)
        for mapping, content in contents:
            mapping.clear()
            mapping.update(content)
        for tensor, value in tensors:
            if not _is_plain(tensor) or tensor.data_ptr() != value.data_ptr():
                _give(tensor, value)

    return restore
