"""What ranks hold, all together, and what it means that it is as on one process."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from negdiag_param import plain_state_dict


def layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(model: nn.Module) -> list[Tensor]:
    """As they are read."""
    return [whole(layer.weight) for layer in layers(model)]


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The whole plain state, named as on one process."""
    state = plain_state_dict(model)
    return {key.removeprefix("module."): whole(value).clone() for key, value in state.items()}


def assert_exactly(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def assert_trained_alike(model: nn.Module, alone: nn.Module) -> None:
    found = plain(model)
    torch.testing.assert_close(found, plain(alone))
    assert all(value.diagonal().max() < 0 for value in found.values() if value.ndim == 2)


def assert_originals_feasible(model: nn.Module) -> None:
    """As a step leaves them that clamps them."""
    originals = [layer.parametrizations.weight.original for layer in layers(model)]
    assert all(whole(original).diagonal().max() < 0 for original in originals)
