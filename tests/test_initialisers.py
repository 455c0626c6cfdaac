"""``init_`` with every initializer there is, and resets that equal those of the stock module."""

import copy

import pytest
import torch
from torch import nn

from negdiag_param import init_, register_negative_diagonal
from tests.cases import LAYERS, MAPS
from tests.living import assert_negative, registered, value_of

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
RESET = [name for name in LAYERS if hasattr(LAYERS[name].make(), "reset_parameters")]


def fits(initializer: str, shape: torch.Size) -> bool:
    if initializer in ("eye_", "sparse_"):
        return len(shape) == 2
    if initializer == "dirac_":
        return 3 <= len(shape) <= 5
    return len(shape) > 1


def reflected(layer, value):
    """``value`` with its diagonal as a registration leaves it."""
    value = value.detach().clone()
    diagonal = layer.diagonal(value)
    diagonal.copy_(torch.where(diagonal == 0, -1e-3, -diagonal.abs()))
    return value


def test_every_initializer_is_here():
    found = {n for n in vars(nn.init) if n.endswith("_") and not n.startswith("_")}
    assert found == set(INITIALIZERS)


@pytest.mark.parametrize("name", ["linear", "linear_wide", "conv2d_groups", "lstm", "raw"])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_an_initializer_fills_the_weight(initializer, map, name):
    layer, arguments = LAYERS[name], INITIALIZERS[initializer]
    module = registered(layer, MAPS[map])
    plain = torch.empty_like(value_of(layer, module))
    if not fits(initializer, plain.shape):
        with pytest.raises(ValueError, match="tensor"):
            init_(module, layer.tensor_name, getattr(nn.init, initializer), *arguments)
        return
    torch.manual_seed(3)
    getattr(nn.init, initializer)(plain, *arguments)
    torch.manual_seed(3)
    function = getattr(nn.init, initializer)
    assert init_(module, layer.tensor_name, function, *arguments) is module
    torch.testing.assert_close(value_of(layer, module), reflected(layer, plain))
    assert_negative(layer, module)


def test_any_callable_that_works_in_place_will_do():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    init_(layer, "weight", torch.Tensor.copy_, -torch.eye(3))
    torch.testing.assert_close(layer.weight, -torch.eye(3))
    init_(layer, "weight", lambda tensor, scale: tensor.mul_(scale), scale=3.0)
    torch.testing.assert_close(layer.weight, -3 * torch.eye(3))
    init_(layer, "weight", nn.init.uniform_, a=-2.0, b=-1.0)
    assert (layer.weight <= -1 + 1e-6).all()


def test_an_initializer_runs_on_all_that_a_pattern_means():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    register_negative_diagonal(model, "[02].weight")
    untouched = model[1].weight.clone()
    init_(model, "*.weight", nn.init.constant_, -2.0)
    assert model[0].weight.allclose(torch.tensor(-2.0))
    assert model[2].weight.allclose(torch.tensor(-2.0))
    assert torch.equal(model[1].weight, untouched)


def test_an_initializer_keeps_the_parameter_and_its_grad_state():
    layer = register_negative_diagonal(nn.Linear(3, 3)).requires_grad_(False)
    original = layer.parametrizations.weight.original
    init_(layer, "weight", nn.init.orthogonal_)
    assert layer.parametrizations.weight.original is original
    assert not original.requires_grad


def test_a_failing_initializer_changes_nothing():
    layer = register_negative_diagonal(nn.Linear(3, 3), map="sign_flip")
    before = layer.weight.clone()

    def fail(tensor):
        tensor.zero_()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        init_(layer, "weight", fail)
    with pytest.raises(ValueError, match="NaN"):
        init_(layer, "weight", nn.init.constant_, float("nan"))
    assert torch.equal(layer.weight, before)


def test_an_infeasible_initializer_can_be_an_error():
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, -1.0)
    register_negative_diagonal(layer, infeasible="error")
    with pytest.raises(ValueError, match="3 of 3"):
        init_(layer, "weight", nn.init.ones_)
    assert layer.weight.allclose(torch.tensor(-1.0))


@pytest.mark.parametrize("name", ["weight", "bias", "missing"])
def test_only_registered_tensors_are_initialized(name):
    with pytest.raises(ValueError, match="expected"):
        init_(nn.Linear(3, 3), name, nn.init.ones_)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("name", RESET)
def test_a_reset_equals_that_of_the_stock_module(name, map):
    layer = LAYERS[name]
    module, stock = registered(layer, MAPS[map]), layer.make()
    bystander = copy.deepcopy(module)
    before = value_of(layer, bystander)
    for resetting in (module, stock):
        torch.manual_seed(11)
        resetting.reset_parameters()
    for key, value in stock.named_parameters():
        expected = reflected(layer, value) if key == layer.tensor_name else value
        torch.testing.assert_close(getattr(module, key), expected)
    assert torch.equal(value_of(layer, bystander), before)
    assert_negative(layer, module)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("tensor_name", ["in_proj_weight", "out_proj.weight"])
def test_multihead_attention_resets_as_it_does_without_us(tensor_name, map):
    blocks = 3 if tensor_name == "in_proj_weight" else 1
    stock, module = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    register_negative_diagonal(module, tensor_name, map=MAPS[map], blocks=blocks)
    for resetting in (stock, module):
        torch.manual_seed(11)
        resetting._reset_parameters()
    expected = stock.in_proj_weight.detach().clone()
    if tensor_name == "in_proj_weight":
        diagonal = expected.view(3, 4, 4).diagonal(dim1=1, dim2=2)
        diagonal.copy_(-diagonal.abs())
    # A reset of the whole leaves out_proj.weight alone.
    torch.testing.assert_close(module.in_proj_weight, expected)


def test_a_reset_on_two_registered_tensors_draws_in_the_order_of_the_stock_module():
    stock, module = nn.GRU(3, 4, 2), nn.GRU(3, 4, 2)
    register_negative_diagonal(module, "weight_hh*", map="sign_flip")
    for resetting in (stock, module):
        torch.manual_seed(11)
        resetting.reset_parameters()
    for key, value in stock.named_parameters():
        torch.testing.assert_close(getattr(module, key).abs(), value.abs())


def test_applying_a_reset_to_a_model_reaches_registered_layers():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    register_negative_diagonal(model, "*.weight")
    before = [model[0].weight.clone(), model[2].weight.clone()]
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    for layer, old in zip((model[0], model[2]), before, strict=True):
        assert not torch.equal(layer.weight, old)
        assert (layer.weight.diagonal() < 0).all()
