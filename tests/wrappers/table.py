"""What other libraries put around a model: a row here gets every test."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn


def stock() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def fabric(model: nn.Module) -> nn.Module:
    fabric = importlib.import_module("lightning.fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).setup(model)


def checkpointed(model: nn.Module) -> nn.Module:
    name = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
    return importlib.import_module(name).checkpoint_wrapper(model)


class Transparent(nn.Module):
    """A wrapper as people write one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "checkpointed": checkpointed,
    "transparent": Transparent,
    "twice": lambda model: Transparent(Transparent(model)),
    "fabric": fabric,
}
every_wrapper = pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(
            wrap, id=name, marks=pytest.mark.integration("lightning") if wrap is fabric else ()
        )
        for name, wrap in WRAPPERS.items()
    ],
)
