"""Loads plain checkpoints into registered modules, and refuses those of other maps."""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param._life import lookup
from negdiag_param._life.assign import writes
from negdiag_param._parametrization.invert import summary
from negdiag_param._private import canonical_state, is_placeholder, warn_user
from negdiag_param._ranks import agreement, shards

# Where DistributedDataParallel and torch.compile keep the model that they wrap.
_WRAPPED = ("module", "_orig_mod")


def translating(load: Callable[..., None]) -> Callable[..., None]:
    """The method that reads a module's entries from a state dict, for plain ones as well."""

    @wraps(load)
    def translated(
        self: nn.Module, state_dict: Any, prefix: str, local_metadata: Any, *others: Any
    ) -> None:
        *_, error_msgs = others  # strict, missing_keys, unexpected_keys, error_msgs
        error_msgs += _translate(self, state_dict, prefix, local_metadata)
        load(self, state_dict, prefix, local_metadata, *others)

    return translated


def _translate(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> Iterator[str]:
    """Replaces plain entries for ``module`` by originals; yields a message for each wrong one."""
    for tensor_name, parametrization in lookup.ours(module).items():
        plain, inside = prefix + tensor_name, f"{prefix}parametrizations.{tensor_name}."
        named = lookup.named_originals(module, tensor_name)
        originals = {inside + name: original for name, original in named.items()}
        place = [*lookup.lists(module)[tensor_name].children()].index(parametrization)
        mark = f"{inside}{place}._extra_state"
        held = partial(lookup.lists(module)[tensor_name].state_dict, prefix=inside, keep_vars=True)
        persistent = parametrization.record.persistent
        # set_model_state_dict fills in the model's own tensors for what it does not find.
        takes_plain = persistent and all(
            state_dict.get(key, own) is own for key, own in originals.items()
        )
        if persistent:
            value = state_dict.get(plain) if takes_plain else None
            value = agreement.shared(value, next(iter(originals.values())))
            if takes_plain and value is not None:
                state_dict[plain] = value
        try:
            with agreement.together(originals.values(), plain):
                _check_real(*map(state_dict.get, originals))
                if takes_plain and plain not in state_dict:
                    _check_not_left_out(plain)
                if mark in state_dict and not is_placeholder(state_dict[mark]):
                    parametrization.set_extra_state(state_dict[mark])
                elif persistent and not takes_plain and plain not in state_dict:
                    warn_user(
                        f"{plain}: expected a checkpoint that says which map wrote it, found none "
                        f"for {next(iter(originals))}; it is taken for one of {parametrization}"
                    )
                state_dict[mark] = parametrization.get_extra_state()
            if takes_plain and plain in state_dict:
                value = state_dict.pop(plain)
                assigned = local_metadata.get("assign_to_params_buffers", False)
                with agreement.together(originals.values(), plain):
                    inverses = _inverses(value, module, tensor_name, assigned)
                    names = [*originals, f"{inside}{place}.eta"]
                    # Beside the originals, such as the base of an orthogonal matrix.
                    others = {key: state_dict.get(key, own) for key, own in held().items()}
                    state_dict.update(others | dict(zip(names, inverses, strict=False)))
            elif plain in state_dict and len(originals) == 1:
                original = state_dict.get(*originals)
                if _is_redundant(state_dict[plain], original, parametrization):
                    del state_dict[plain]
        except (TypeError, ValueError) as error:
            yield f"While loading {plain}: {error}"
            # Load the current tensors instead, so that only this error is reported.
            state_dict.update(held())


def _inverses(value: Any, module: nn.Module, tensor_name: str, assigned: bool) -> list[Any]:
    """What to load into the originals, and the scaling, so that the tensor is ``value``."""
    originals = lookup.originals(module, tensor_name)
    if not isinstance(value, Tensor) or value.shape != getattr(module, tensor_name).shape:
        return [value] * len(originals)  # load_state_dict says what is wrong with it
    _check_real(value)
    with torch.inference_mode(False), torch.no_grad():  # a parameter that can be trained later
        if not lookup.is_alone(module, tensor_name):
            changes = writes(module, tensor_name, value.to(originals[0].dtype))
            return [source for _, source in changes]
        if not assigned:
            value = shards.aligned(value.to(originals[0].dtype), originals[0])
        original, scaling = lookup.ours(module)[tensor_name]._inverted(value)  # noqa: SLF001
        return [shards.like(original, originals[0]), *(eta for _, eta in scaling)]


def _is_redundant(weight: object, original: object, parametrization: nn.Module) -> bool:
    """Whether ``original`` gives ``weight``, as where a module writes its weight by itself."""
    if not (isinstance(weight, Tensor) and isinstance(original, Tensor)):
        return False
    with torch.no_grad():
        return torch.equal(parametrization(original).to(weight), weight)


def _check_not_left_out(plain: str) -> None:
    """Refuses plain entries whose keys lack the names of wrappers, which would be ignored."""
    key = ".".join(part for part in plain.split(".") if part not in _WRAPPED)
    if key != plain and key in canonical_state():
        raise ValueError(
            f"expected a checkpoint of the registered model, got {key}, which "
            f"set_model_state_dict does not find in a wrapped model that is registered; give it "
            f"the model within the wrapper, such as model.module"
        )


def _check_real(*values: object) -> None:
    """Refuses complex and quantized tensors, whose conversion to floats would lose a part."""
    for value in values:
        if isinstance(value, Tensor) and (value.is_complex() or value.is_quantized):
            raise TypeError(f"expected real numbers, got {summary(value)}")
