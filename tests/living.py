"""What it means that a registered layer is alive, whatever has happened to it."""

from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.cases import Layer


def registered(layer: Layer, map: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = layer.make()
    return register_negative_diagonal(
        module, layer.tensor_name, map=map, **layer.options, **options
    )


def weight_of(layer: Layer, module: nn.Module) -> Tensor:
    return getattr(module, layer.tensor_name)


def value_of(layer: Layer, module: nn.Module) -> Tensor:
    with torch.no_grad():
        return weight_of(layer, module).clone()


def original_of(layer: Layer, module: nn.Module) -> nn.Parameter:
    return module.parametrizations[layer.tensor_name].original


def stock_with(layer: Layer, module: nn.Module) -> nn.Module:
    """A module that never heard of us, with the values of ``module``."""
    stock = layer.make()
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            current = weight_of(layer, module) if name == layer.tensor_name else parameters[name]
            parameter.data = current.clone()
        for name, buffer in stock.named_buffers():
            buffer.data = module.get_buffer(name).clone()
    return stock


def assert_negative(layer: Layer, module: nn.Module) -> None:
    diagonal = layer.diagonal(weight_of(layer, module))
    assert diagonal.numel()
    assert (diagonal < 0).all()


def assert_alive(layer: Layer, module: nn.Module) -> None:
    """The layer computes with a negative diagonal, and training reaches its original."""
    assert_negative(layer, module)
    original = original_of(layer, module)
    assert isinstance(original, nn.Parameter)
    original.grad = None
    # Where the inputs are dead, so are gradients; the weight itself never is.
    (layer.run(module).square().sum() + weight_of(layer, module).square().sum()).backward()
    assert layer.diagonal(original.grad).count_nonzero() == layer.diagonal(original).numel()
    original.grad = None
    module.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(layer.run(module), layer.run(stock_with(layer, module)))


def assert_independent(layer: Layer, one: nn.Module, other: nn.Module) -> None:
    """Changing either of two modules leaves the weight of the other as it is."""
    for changed, kept in ((one, other), (other, one)):
        before, changed_before = value_of(layer, kept), value_of(layer, changed)
        with torch.no_grad():
            original_of(layer, changed).sub_(0.25)
        assert not torch.equal(value_of(layer, changed), changed_before)
        torch.testing.assert_close(value_of(layer, kept), before, rtol=0, atol=0)
