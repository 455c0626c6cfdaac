"""``init_`` with every initializer there is."""

import pytest
import torch
from torch import nn

from negdiag_param import init_, register_negative_diagonal
from tests.support.asserts import (
    assert_negative,
    diagonal_of,
    original_of,
    reflected,
    registered,
    value_of,
)
from tests.support.tables import every_layer_once_every_map_somewhere

INITIALIZERS = {
    "uniform_": (-2.0, 2.0),
    "normal_": (0.0, 2.0),
    "trunc_normal_": (),
    "constant_": (1.5,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "dirac_": (),
    "xavier_uniform_": (),
    "xavier_normal_": (),
    "kaiming_uniform_": (),
    "kaiming_normal_": (),
    "orthogonal_": (),
    "sparse_": (0.5,),
}


def fits(initializer: str, shape: torch.Size) -> bool:
    if initializer in ("eye_", "sparse_"):
        return len(shape) == 2
    if initializer == "dirac_":
        return 3 <= len(shape) <= 5
    return len(shape) > 1


def test_every_initializer_is_here():
    found = {n for n in vars(nn.init) if n.endswith("_") and not n.startswith("_")}
    assert found == set(INITIALIZERS)


@every_layer_once_every_map_somewhere("linear", "conv2d_groups", "lstm", somewhere=("linear",))
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_an_initializer_fills_the_weight_and_keeps_the_parameter(initializer, layer, map):
    module, arguments = registered(layer, map).requires_grad_(False), INITIALIZERS[initializer]
    original = original_of(layer, module)
    function = getattr(nn.init, initializer)
    plain = torch.empty_like(value_of(layer, module))
    if not fits(initializer, plain.shape):
        with pytest.raises(ValueError, match="tensor"):
            init_(module, layer.tensor_name, function, *arguments)
        return
    torch.manual_seed(3)
    function(plain, *arguments)
    torch.manual_seed(3)
    assert init_(module, layer.tensor_name, function, *arguments) is module
    torch.testing.assert_close(value_of(layer, module), reflected(layer, plain))
    assert_negative(diagonal_of(layer, module))
    assert original_of(layer, module) is original
    assert not original.requires_grad


def test_any_callable_that_works_in_place_will_do():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    init_(layer, "weight", torch.Tensor.copy_, -torch.eye(3))
    torch.testing.assert_close(layer.weight, -torch.eye(3))
    init_(layer, "weight", lambda tensor, scale: tensor.mul_(scale), scale=3.0)
    torch.testing.assert_close(layer.weight, -3 * torch.eye(3))
    init_(layer, "weight", nn.init.uniform_, a=-2.0, b=-1.0)
    assert (layer.weight <= -1 + 1e-6).all()
