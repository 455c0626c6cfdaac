"""Training: the diagonal moves and stays negative."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import (
    assert_alive,
    assert_negative,
    diagonal_of,
    original_of,
    registered,
    value_of,
    weight_of,
)
from tests.support.tables import (
    BUILT_IN,
    LAYERS,
    every_built_in,
    every_dtype,
    every_layer_once_every_map_somewhere,
    every_map,
    every_margin,
)


@every_dtype
@every_layer_once_every_map_somewhere()
def test_registered_layers_train_and_stay_negative(layer, map, dtype):
    torch.manual_seed(0)
    module = layer.make().to(dtype)
    optimizer = torch.optim.SGD(list(module.parameters()), lr=0.02)
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    for _ in range(3):
        optimizer.zero_grad()
        loss = layer.run(module).float().square().mean()
        loss = loss + (getattr(module, layer.tensor_name).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        assert_negative(layer.diagonal(getattr(module, layer.tensor_name)))
    original = module.parametrizations[layer.tensor_name].original
    if original.requires_grad:
        assert (layer.diagonal(original.grad) != 0).any()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@every_layer_once_every_map_somewhere(
    "linear", "conv2d_groups", "transposed1d", "gru", "lstm", "raw", somewhere=("linear",)
)
def test_an_optimizer_made_before_trains_the_layer(optimizer, map, layer):
    torch.manual_seed(0)
    module = layer.make()
    steps = optimizer(module.parameters(), lr=0.1)
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    bystander = copy.deepcopy(module)
    before = value_of(layer, module)
    for _ in range(3):
        steps.zero_grad()
        # Toward a positive diagonal, which it must not reach.
        (weight_of(layer, module) - 1).square().sum().backward()
        steps.step()
    assert_negative(diagonal_of(layer, module))
    moved = layer.diagonal(value_of(layer, module)) != layer.diagonal(before)
    assert moved.all()
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, module)


@pytest.mark.parametrize(
    ("map", "margin", "fixed"),
    [
        ("exp", 0.0, -1.0),
        ("exp", 0.5, -1.5),
        ("softplus", 0.0, -0.6931),
        ("softplus", 0.5, -1.1931),
        ("sign_flip", 0.0, 0.0),
        # Beyond the boundary, zero counts as its mirror image.
        ("sign_flip", 0.5, -1.0),
    ],
)
def test_weight_decay_pulls_the_diagonal_to_its_fixed_point(map, margin, fixed):
    layer = LAYERS["linear"]
    module = registered(layer, map, margin=margin)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, weight_decay=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (0 * weight_of(layer, module)).sum().backward()
        optimizer.step()
    diagonal = layer.diagonal(value_of(layer, module))
    expected = torch.full_like(diagonal, fixed)
    torch.testing.assert_close(diagonal, expected, rtol=0, atol=1e-4)
    assert (diagonal < 0).all()


@every_built_in
def test_an_ema_averages_the_originals(map):
    layer = LAYERS["linear"]
    module = registered(layer, map)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(module)
    before = value_of(layer, module)
    with torch.no_grad():
        original_of(layer, module).diagonal().sub_(1)
    averaged.update_parameters(module)
    after = value_of(layer, module)
    found = layer.diagonal(value_of(layer, averaged.module))
    first, last = layer.diagonal(before), layer.diagonal(after)
    assert (found < 0).all()
    if map == "exp":
        torch.testing.assert_close(found, -(first * last).sqrt())
    elif map == "sign_flip":
        torch.testing.assert_close(found, (first + last) / 2)
    assert ((found <= torch.maximum(first, last)) & (found >= torch.minimum(first, last))).all()


@pytest.mark.parametrize("name", BUILT_IN)
@every_margin
def test_large_steps_toward_a_positive_diagonal_never_leave_the_negatives(name, margin):
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    parametrize.register_parametrization(
        layer, "weight", BUILT_IN[name](margin, infeasible="reflect")
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0)
    for _ in range(300):
        optimizer.zero_grad()
        error = layer.weight - 5.0
        # Under a square these steps diverge; under this loss they diverge to numbers.
        (error.abs().sum() if name == "square" else error.square().mean()).backward()
        optimizer.step()
        assert_negative(layer.weight.diagonal(), margin)


@every_map
def test_functional_call_and_ensembles(map):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=map)
    x = torch.randn(2, 3)
    state = {"parametrizations.weight.original": torch.zeros(3, 3), "bias": torch.zeros(3)}
    output = torch.func.functional_call(layer, state, (x,))
    weight = layer.parametrizations.weight[0](torch.zeros(3, 3))
    torch.testing.assert_close(output, F.linear(x, weight))
    copies = [nn.Sequential(copy.deepcopy(layer)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(copies)
    stacked = torch.func.vmap(lambda p, b: torch.func.functional_call(copies[0], (p, b), (x,)))(
        parameters, buffers
    )
    torch.testing.assert_close(stacked[1], copies[1](x))


@every_map
def test_autocast_leaves_the_constraint_alone(map):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=map)
    with torch.autocast("cpu", torch.bfloat16):
        assert_negative(layer.weight.diagonal())
        assert layer.weight.dtype == torch.float32
        layer(torch.randn(2, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
