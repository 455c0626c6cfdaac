"""Puts a parametrization on a tensor and takes it off.

Either is prepared first, which does all that can fail and changes nothing; what is left only
assigns.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


def registration(owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal) -> Change:
    """Prepares a registration; the weight keeps its value, reflected where infeasible."""
    with torch.no_grad():
        value: Tensor = getattr(owner, tensor_name).detach()
    original = parametrization.right_inverse(value, parametrization.options.at_registration)
    if tensor_name not in lookup.lists(owner):
        return partial(_attach, owner, tensor_name, parametrization, original)
    # Another parametrization maps the tensor already, to what ours maps to the same value.
    writes = assign.writes(owner, tensor_name, original)
    return partial(_append, owner, tensor_name, parametrization, writes)


def removal(owner: nn.Module, tensor_name: str) -> Change:
    """Prepares the removal of all parametrizations of the tensor; its current value stays."""
    originals = lookup.originals(owner, tensor_name)
    with torch.inference_mode(False), torch.no_grad():
        value: Tensor = getattr(owner, tensor_name).detach()
    return partial(_detach, owner, tensor_name, originals, value)


@contextmanager
def restored_on_failure(owners: Iterable[nn.Module]) -> Iterator[None]:
    """Puts the modules back if the block fails: class, tensors, values, submodules."""
    with torch.no_grad():
        undo = [_undo(owner) for owner in {id(owner): owner for owner in owners}.values()]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def _attach(
    owner: nn.Module, tensor_name: str, parametrization: NegativeDiagonal, original: Tensor
) -> None:
    mapping: Any = own_parameters(owner)
    if tensor_name not in mapping:
        mapping = own_buffers(owner)
    tensor: Tensor = mapping[tensor_name]
    base = registered.base_of(owner)
    found = _list(parametrization, tensor, original)
    parametrization.train(owner.training)
    del mapping[tensor_name]
    non_persistent_buffers(owner).discard(tensor_name)
    holder = own_modules(owner).get("parametrizations")
    if holder is None:
        own_modules(owner)["parametrizations"] = holder = nn.ModuleDict()
    own_modules(holder)[tensor_name] = found
    registered.adopt(owner, base)
    if not parametrization.record.persistent:
        non_persistent_buffers(found).add("original")
        parametrization.register_state_dict_post_hook(_without_mark)  # type: ignore[no-untyped-call]


def _list(
    parametrization: NegativeDiagonal, tensor: Tensor, original: Tensor
) -> ParametrizationList:
    """PyTorch's list, in which ``tensor``, the same object, holds ``original``."""
    # The list asks for the inverse of the tensor, which is known.
    vars(parametrization)["right_inverse"] = lambda _: original
    try:
        if not is_plain(tensor):
            return ParametrizationList([parametrization], tensor)
        stand_in: Tensor = original
        if isinstance(tensor, nn.Parameter):
            stand_in = nn.Parameter(original, tensor.requires_grad)
        found = ParametrizationList([parametrization], stand_in)
    finally:
        del vars(parametrization)["right_inverse"]
    mapping: Any = own_parameters(found) if isinstance(tensor, nn.Parameter) else own_buffers(found)
    mapping["original"] = tensor
    give_data(tensor, _laid_out(original, tensor.stride()))
    return found


def _append(
    owner: nn.Module,
    tensor_name: str,
    parametrization: NegativeDiagonal,
    writes: list[assign.Write],
) -> None:
    base = registered.base_of(owner)
    parametrization.train(owner.training)
    lookup.lists(owner)[tensor_name].append(parametrization)  # type: ignore[operator]
    for write in writes:
        write.carry_out()
    registered.adopt(owner, base)


def _detach(owner: nn.Module, tensor_name: str, originals: list[Tensor], value: Tensor) -> None:
    order, record = lookup.first_order(owner), lookup.ours(owner)[tensor_name].record
    base, holder = registered.base_of(owner), own_modules(owner)["parametrizations"]
    tensor = originals[0]
    if len(originals) > 1:
        trained = any(original.requires_grad for original in originals)
        tensor = nn.Parameter(value, trained) if isinstance(tensor, nn.Parameter) else value
    elif is_plain(tensor):
        give_data(tensor, value)
    else:
        assign.Write(tensor, value).carry_out()
    del own_modules(holder)[tensor_name]  # type: ignore[arg-type]
    if own_modules(holder):  # type: ignore[arg-type]
        registered.update_class(owner)
    else:
        del own_modules(owner)["parametrizations"]
        owner.__class__ = base
    mapping: Any = own_parameters(owner) if isinstance(tensor, nn.Parameter) else own_buffers(owner)
    mapping[tensor_name] = tensor
    lookup.sort(mapping, order)
    if not record.persistent:
        non_persistent_buffers(owner).add(tensor_name)


def is_plain(tensor: Tensor) -> bool:
    """Whether :func:`give_data` works on it: subclasses such as DTensor do not take data."""
    return type(tensor) in (Tensor, nn.Parameter)


def give_data(tensor: Tensor, value: Tensor) -> None:
    """Makes ``tensor`` hold ``value``, in the storage of that.

    As ``set_``, which ``parametrize`` uses; but that takes from a parameter what accumulates its
    gradients, and with it the hooks by which DistributedDataParallel keeps replicas in step.
    """
    tensor.data = value.detach()
    torch.autograd.graph.increment_version(tensor)  # a graph that is alive must not use it


def _laid_out(original: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``original`` as the weight was laid out, also where that was a transposed view."""
    if original.stride() == strides:
        return original
    laid = torch.empty_strided(
        original.shape, strides, dtype=original.dtype, device=original.device
    )
    return laid.copy_(original.detach())


def _without_mark(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """A tensor that is not in the checkpoint has no mark there either."""
    state_dict.pop(f"{prefix}_extra_state", None)


def _undo(owner: nn.Module) -> Change:
    cls, volatile = owner.__class__, set(non_persistent_buffers(owner))
    holder = own_modules(owner).get("parametrizations")
    modules = [owner, *lookup.lists(owner).values(), *([holder] if holder is not None else [])]
    contents: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (mapping, dict(mapping))
        for module in modules
        for mapping in (own_parameters(module), own_buffers(module), own_modules(module))
    ]
    # What is plain may get another storage; what was registered before may be written in place.
    values = [
        (tensor, tensor.detach(), None if module is owner and is_plain(tensor) else tensor.clone())
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
        with torch.no_grad():
            for tensor, place, value in values:
                if is_plain(tensor) and tensor.data_ptr() != place.data_ptr():
                    give_data(tensor, place)
                if value is not None:
                    tensor.copy_(value)

    return restore
