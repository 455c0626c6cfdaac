"""What ranks hold, all together, and what it means that it is as on one process."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from negdiag_param import negative_diagonals, plain_state_dict


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


def monitored(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(d) for name, d in negative_diagonals(model)}


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


class Collectives(TorchDispatchMode):
    """Counts them. CommDebugMode follows the modules too, which takes as long as all the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # its parts come by later
        self.count += func.namespace in {"c10d", "_c10d_functional"}
        return func(*args, **kwargs or {})
