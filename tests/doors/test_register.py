"""Registering keeps the layer as it was, but for a diagonal reflected to the negatives."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import AffineTransform, ComposeTransform, SoftplusTransform
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import (
    assert_negative,
    assert_only_diagonal_differs,
    assert_same_bits,
    parametrization_of,
    registered,
    weight_of,
)
from tests.support.modules import Raw
from tests.support.tables import (
    every_built_in,
    every_layer_once_every_map_somewhere,
    every_map,
    every_margin,
)


@every_margin
@every_layer_once_every_map_somewhere()
def test_registration_keeps_the_layer_and_reflects_its_diagonal(layer, map, margin):
    torch.manual_seed(0)
    module = layer.make().eval()
    before = getattr(module, layer.tensor_name)
    value = before.detach().clone()
    result = register_negative_diagonal(
        module, layer.tensor_name, map=map, margin=margin, **layer.options
    )
    assert result is module
    assert not module.training
    weight = getattr(module, layer.tensor_name)
    chain = module.parametrizations[layer.tensor_name]
    assert chain.original is before
    assert weight.dtype == value.dtype
    assert weight.stride() == value.stride()
    assert_negative(layer.diagonal(weight), margin)
    assert_only_diagonal_differs(weight, value, layer.diagonal)
    kept = layer.diagonal(value).abs() > margin + 1e-2
    torch.testing.assert_close(
        layer.diagonal(weight)[kept], -layer.diagonal(value)[kept].abs(), rtol=1e-3, atol=1e-4
    )


@every_map
def test_zero_initialised_layers_start_negative_and_train(map):
    layer = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(layer.weight)
    register_negative_diagonal(layer, map=map)
    torch.testing.assert_close(layer.weight.diagonal(), torch.full((3,), -1e-3))
    layer(torch.ones(1, 3)).sum().backward()
    assert (layer.parametrizations.weight.original.grad.diagonal() != 0).all()


def test_requires_grad_and_an_earlier_optimizer_survive():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    register_negative_diagonal(layer)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    frozen = nn.Linear(3, 3).requires_grad_(False)
    register_negative_diagonal(frozen)
    assert not frozen.weight.requires_grad
    assert not frozen.parametrizations.weight.original.requires_grad


def test_memory_format_is_kept():
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    register_negative_diagonal(conv)
    for tensor in (conv.weight, conv.parametrizations.weight.original):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    conv.weight = -conv.weight.detach().abs().contiguous()
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_strides_of_a_transposed_parameter_are_kept():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(6, 4).T)
    register_negative_diagonal(module)
    assert module.weight.stride() == module.parametrizations.weight.original.stride() == (1, 4)
    module.weight = -torch.rand(4, 6) - 0.1
    assert module.weight.stride() == (1, 4)
    remove_negative_diagonal(module)
    assert module.weight.stride() == (1, 4)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(6, 8)[::2, ::3],
        torch.rand(8, 6).T[1::2],
        torch.rand(5, 1, 4).permute(2, 1, 0)[:, 0],
        torch.rand(1, 1).expand(1, 1),
        torch.rand(1, 0).expand(3, 0),
        torch.rand(0, 4),
        torch.rand(1, 6).as_strided((1, 3), (0, 2)),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}, {tensor.stride()}",
)
def test_views_whose_entries_lie_apart_are_taken(tensor):
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    register_negative_diagonal(module)
    assert (module.weight.diagonal() < 0).all()
    assert module.weight.shape == tensor.shape


def test_a_transform_with_a_memory_can_be_copied():
    softplus = SoftplusTransform(cache_size=1)
    negated = ComposeTransform([softplus, AffineTransform(0.0, -1.0)], cache_size=1)
    layer = register_negative_diagonal(nn.Linear(3, 3), map=negated)
    layer(torch.randn(2, 3)).sum().backward()
    assert_same_bits(copy.deepcopy(layer).weight, layer.weight)


def test_raw_parameters_and_buffers_side_by_side():
    module = Raw()
    for name in ("square", "vector", "constant"):
        register_negative_diagonal(module, name)
    register_negative_diagonal(module, "batch", dims=(-2, -1))
    assert_negative(module.vector)
    assert_negative(module.constant.diagonal())
    assert "parametrizations.constant.original" in dict(module.named_buffers())
    for name in ("square", "vector", "constant", "batch"):
        remove_negative_diagonal(module, name)
    assert type(module) is Raw
    assert list(dict(module.named_parameters())) == ["square", "batch", "vector"]


@every_layer_once_every_map_somewhere()
def test_the_ecosystems_door_gives_the_same_weight(layer, map):
    helped = registered(layer, map, infeasible="reflect")
    parametrization = copy.deepcopy(parametrization_of(layer, helped))
    torch.manual_seed(0)
    module = layer.make()
    parametrize.register_parametrization(module, layer.tensor_name, parametrization)
    assert_same_bits(weight_of(layer, module), weight_of(layer, helped))


@pytest.mark.parametrize(
    "weight",
    [
        torch.rand(3, 4),
        torch.rand(4, 3).T,
        torch.rand(6, 8)[::2, ::2],
        torch.rand(8, 6)[::2, ::2].T,
    ],
    ids=["contiguous", "transposed", "sliced", "both"],
)
def test_the_original_is_laid_out_as_the_weight_was(weight):
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(weight)
    register_negative_diagonal(layer)
    assert layer.parametrizations.weight.original.stride() == weight.stride()


@every_built_in
@pytest.mark.parametrize("mode", [lambda: torch.device("meta"), FakeTensorMode])
def test_what_has_no_values_has_a_life_too(mode, map):
    with mode():
        layer = register_negative_diagonal(nn.Linear(4, 4), map=map)
        layer.weight = -torch.eye(4)
        init_(layer, "weight", nn.init.ones_)
        layer.load_state_dict(layer.state_dict())
        layer(torch.ones(2, 4)).sum().backward()
        assert layer.parametrizations.weight.original.grad.shape == (4, 4)
        assert [entries.shape for _, entries in negative_diagonals(layer)] == [(4,)]
        assert type(remove_negative_diagonal(layer)) is nn.Linear
