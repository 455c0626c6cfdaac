"""Training: the diagonal moves and stays negative, whatever trains it."""

import math

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal
from tests.support.asserts import (
    assert_negative,
    baked,
    diagonal_of,
    original_of,
    push_up,
    value_of,
    weight_of,
)
from tests.support.tables import (
    LAYERS,
    every_dtype,
    every_layer_once_every_map_somewhere,
    every_map,
    grouped,
)

LINEAR = LAYERS["linear"]


@every_dtype
@every_layer_once_every_map_somewhere(somewhere=("linear",))
def test_an_optimizer_made_before_trains_the_layer_and_it_stays_negative(layer, map, dtype):
    torch.manual_seed(0)
    module = layer.make().to(dtype)
    kind = torch.optim.AdamW if dtype.itemsize > 2 else torch.optim.SGD  # which has no eps
    optimizer = kind(list(module.parameters()), lr=0.05)
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    before = value_of(layer, module)
    for _ in range(3):
        optimizer.zero_grad()
        loss = layer.run(module).float().square().mean()
        # Toward a positive diagonal, which it must not reach.
        (loss + (weight_of(layer, module).float() - 1).square().sum()).backward()
        optimizer.step()
        assert_negative(diagonal_of(layer, module))
    if isinstance(original_of(layer, module), nn.Parameter):
        moved = layer.diagonal(value_of(layer, module)) != layer.diagonal(before)
        assert moved.all() if dtype.itemsize > 2 else moved.any()


# Where decay alone takes a diagonal. Beyond the boundary, sign_flip reads zero as its mirror image.
RESTS = {
    "clamp": lambda margin: -margin,
    "exp": lambda margin: -margin - 1.0,
    "softplus": lambda margin: -margin - math.log(2.0),
    "softplus, beta=10": lambda margin: -margin - math.log(2.0) / 10,
    "square": lambda margin: -margin,
    "sign_flip": lambda margin: -2.0 * margin,
}


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("case", RESTS)
def test_weight_decay_pulls_to_the_fixed_point_of_the_map(case, margin):
    torch.manual_seed(0)
    kind, _, beta = case.partition(", beta=")
    options = {"beta": float(beta)} if beta else {}
    layer = register_negative_diagonal(nn.Linear(4, 4), map=kind, margin=margin, **options)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        (0.0 * layer.weight).sum().backward()
        optimizer.step()
    diagonal = layer.weight.diagonal()
    expected = torch.full((4,), RESTS[case](margin))
    torch.testing.assert_close(diagonal, expected, rtol=1e-5, atol=1e-6)
    assert_negative(diagonal, margin)


@every_map
def test_ensembles_compute_as_their_members(map):
    layers = [register_negative_diagonal(nn.Linear(3, 3), map=map) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x, call = torch.randn(2, 3), torch.func.functional_call
    stacked = torch.func.vmap(lambda p, b: call(layers[0], (p, b), (x,)))
    expected = torch.stack([each(x) for each in layers])
    torch.testing.assert_close(stacked(parameters, buffers), expected)


@every_map
def test_autocast_leaves_the_constraint_alone(map):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=map)
    with torch.autocast("cpu", torch.bfloat16):
        assert_negative(layer.weight.diagonal())
        assert layer.weight.dtype == torch.float32
        layer(torch.randn(2, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_packed_sequences():
    layer = register_negative_diagonal(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    torch.testing.assert_close(layer(packed)[0].data, baked(layer)(packed)[0].data)


def encoder_layer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    register_negative_diagonal(layer, "linear?.weight")
    register_negative_diagonal(layer, "self_attn.in_proj_weight", blocks=3)
    return register_negative_diagonal(layer, "self_attn.out_proj.weight")


@pytest.mark.parametrize("training", [True, False])
def test_attention_uses_the_mapped_weights_on_its_fast_path_too(training):
    layer, x = encoder_layer().train(training), torch.randn(2, 5, 4)
    push_up(layer)
    layer(x).square().sum().backward()
    attention = layer.self_attn
    assert_negative(grouped(3)(attention.in_proj_weight))
    # The bias of the keys shifts all scores alike, and so do some of their weights.
    assert grouped(3)(attention.parametrizations.in_proj_weight.original.grad)[[0, 2]].all()
    assert attention.out_proj.parametrizations.weight.original.grad.diagonal().all()
    stock = baked(layer)
    torch.testing.assert_close(layer(x), stock(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), stock(x))
        layer.linear1.parametrizations.weight.original.diagonal().sub_(1)
        assert not layer(x).allclose(stock(x))
