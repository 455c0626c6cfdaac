"""Registered layers, what can be read of them, and the properties by name."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import (
    NegativeDiagonal,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.tables import LEADING, Layer


def registered(layer: Layer, map: Any = LEADING, **options: Any) -> nn.Module:
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


def parametrization_of(layer: Layer, module: nn.Module) -> NegativeDiagonal:
    return module.parametrizations[layer.tensor_name][0]


def diagonal_of(layer: Layer, module: nn.Module) -> Tensor:
    return layer.diagonal(weight_of(layer, module))


def computed(layer: Layer, module: nn.Module) -> Tensor:
    """The weight, past every cache."""
    with torch.no_grad():
        parametrization = copy.deepcopy(parametrization_of(layer, module))
        return parametrization(original_of(layer, module).detach().clone())


def baked(model: nn.Module) -> nn.Module:
    """A copy with stock modules only."""
    return remove_negative_diagonal(copy.deepcopy(model), "*")


def push_up(model: nn.Module, steps: int = 5) -> None:
    """Trains every diagonal toward positive values."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((diagonal - 1).square().sum() for _, diagonal in negative_diagonals(model)).backward()
        optimizer.step()


def sample(layer: Layer) -> Tensor:
    return torch.randn(layer.input_shape, generator=torch.Generator().manual_seed(7))


def first(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def reflected(layer: Layer, value: Tensor) -> Tensor:
    """``value`` with its diagonal as a registration leaves it."""
    value = value.detach().clone()
    diagonal = layer.diagonal(value)
    diagonal.copy_(torch.where(diagonal == 0, -1e-3, -diagonal.abs()))
    return value


def assert_negative(diagonal: Tensor, margin: float = 0.0) -> None:
    exact = diagonal.detach().double()
    assert exact.numel()
    assert exact.isfinite().all(), diagonal
    assert (diagonal < 0).all(), diagonal
    assert (exact <= -margin).all(), (diagonal, margin)


def bits(tensor: Tensor) -> Tensor:
    """As integers: 0.0 and -0.0 differ, and NaN equals itself."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().contiguous().view(integer)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(bits(actual), bits(expected))


def assert_only_diagonal_differs(
    actual: Tensor, expected: Tensor, where: Callable[[Tensor], Tensor]
) -> None:
    """``where`` gives the diagonal of a tensor, as a view."""
    blank = []
    for tensor in (actual, expected):
        clone = tensor.detach().clone()
        where(clone).zero_()
        blank.append(clone)
    assert_same_bits(*blank)


def assert_alive(layer: Layer, module: nn.Module) -> None:
    """The layer computes with a negative diagonal, and training reaches its original."""
    assert_negative(diagonal_of(layer, module))
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


def assert_same_state(found: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    """What stock code would find in a checkpoint of either is the same."""
    found, expected = plain_state_dict(found), plain_state_dict(expected)
    assert list(found) == list(expected)
    torch.testing.assert_close(dict(found), dict(expected), check_dtype=False, **tolerance)
