"""Registering reflects the diagonal and no more, initialisers pass, and removing leaves stock."""

import copy
import pickle
from functools import partial
from itertools import chain, repeat
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
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
    diagonal_of,
    original_of,
    reflected,
    registered,
    value_of,
)
from tests.support.modes import switched
from tests.support.modules import linear
from tests.support.state import state_of
from tests.support.tables import (
    every_built_in,
    every_layer_once_every_map_somewhere,
    grouped,
)


@every_layer_once_every_map_somewhere()
def test_registration_keeps_the_layer_and_reflects_its_diagonal(layer, map):
    margin = 0.1
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


def test_a_failure_in_the_middle_of_registering_changes_nothing():
    model = nn.Sequential(linear(), linear())
    fails_late = chain([None, RuntimeError("no memory")], repeat(None))
    before = state_of(model)
    with (
        mock.patch.object(torch.autograd.graph, "increment_version", side_effect=fails_late),
        pytest.raises(RuntimeError, match="no memory"),
    ):
        register_negative_diagonal(model, "*.weight")
    assert state_of(model) == before


LAYOUTS = {
    "contiguous": torch.rand(4, 6),
    "transposed": torch.rand(6, 4).T,
    "sliced": torch.rand(6, 8)[::2, ::3],
    "sliced and transposed": torch.rand(8, 6).T[1::2],
    "permuted": torch.rand(5, 1, 4).permute(2, 1, 0)[:, 0],
    "one entry, expanded": torch.rand(1, 1).expand(1, 1),
    "no entries, expanded": torch.rand(1, 0).expand(3, 0),
    "no entries": torch.rand(0, 4),
    "a row with gaps": torch.rand(1, 6).as_strided((1, 3), (0, 2)),
    "channels last": torch.rand(4, 4, 3, 3).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_stays_that_of_the_parameter(layout):
    module = nn.Module()
    module.weight = nn.Parameter(LAYOUTS[layout].clone(memory_format=torch.preserve_format))
    strides = module.weight.stride()
    register_negative_diagonal(module, dims=(0, 1))
    assert module.parametrizations.weight.original.stride() == strides
    for _ in range(2):
        assert module.weight.shape == LAYOUTS[layout].shape
        assert (module.weight.diagonal() < 0).all()
        if module.weight.numel() > 1:
            assert module.weight.stride() == strides
        module.weight = -(torch.rand(LAYOUTS[layout].shape) + 0.1)
    remove_negative_diagonal(module)
    assert module.weight.stride() == strides


def test_a_transform_with_a_memory_can_be_copied():
    softplus = SoftplusTransform(cache_size=1)
    negated = ComposeTransform([softplus, AffineTransform(0.0, -1.0)], cache_size=1)
    layer = register_negative_diagonal(nn.Linear(3, 3), map=negated)
    layer(torch.randn(2, 3)).sum().backward()
    assert_same_bits(copy.deepcopy(layer).weight, layer.weight)


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


@every_layer_once_every_map_somewhere()
def test_assignment_sets_the_weight(layer, map):
    module = registered(layer, map)
    old = getattr(module, layer.tensor_name).detach()
    value = torch.randn(old.shape)
    layer.diagonal(value).copy_(-torch.rand_like(layer.diagonal(value)) - 0.1)
    strides = module.parametrizations[layer.tensor_name].original.stride()
    transposed = value.movedim(0, -1).contiguous().movedim(-1, 0)
    setattr(module, layer.tensor_name, transposed)
    weight = getattr(module, layer.tensor_name)
    torch.testing.assert_close(weight, value)
    assert_only_diagonal_differs(weight, value, layer.diagonal)
    assert weight.stride() == strides
    value.fill_(7.0)
    assert not (getattr(module, layer.tensor_name) == 7.0).any()
    setattr(module, layer.tensor_name, weight)
    torch.testing.assert_close(getattr(module, layer.tensor_name), weight, rtol=1e-6, atol=0)
    setattr(module, layer.tensor_name, nn.Parameter(weight.detach() * 1.5))
    torch.testing.assert_close(getattr(module, layer.tensor_name), weight * 1.5)


def as_matrix(conv: nn.Module, channels: int, size: tuple[int, ...]) -> Tensor:
    """The linear map of a convolution without bias, one column per input entry."""
    n = channels * torch.Size(size).numel()
    return conv(torch.eye(n).view(n, channels, *size)).flatten(1).T


CENTERED = {
    "odd": lambda: nn.Conv1d(3, 3, 5, padding=2, bias=False),
    "even": lambda: nn.Conv1d(3, 3, 4, padding="same", bias=False),
    "dilated": lambda: nn.Conv1d(2, 2, 3, padding=2, dilation=2, bias=False),
    "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(3, 3, (3, 2), padding="same", groups=3, bias=False),
    "volume": lambda: nn.Conv3d(2, 2, (1, 3, 2), padding="same", bias=False),
    "transposed": lambda: nn.ConvTranspose1d(4, 4, 3, padding=1, groups=2, bias=False),
    "transposed_dilated": lambda: nn.ConvTranspose2d(2, 2, 3, padding=2, dilation=2, bias=False),
}


@pytest.mark.parametrize("name", CENTERED)
def test_center_taps_are_the_main_diagonal_of_the_convolution(name):
    torch.manual_seed(0)
    conv = CENTERED[name]()
    size = (4,) * (conv.weight.ndim - 2)
    before = as_matrix(conv, conv.in_channels, size).detach()
    register_negative_diagonal(conv, taps="center")
    after = as_matrix(conv, conv.in_channels, size)
    assert_negative(after.diagonal())
    torch.testing.assert_close(
        after - torch.diag(after.diagonal()), before - torch.diag(before.diagonal())
    )


def test_groups_are_inferred_only_where_they_fit():
    conv = nn.Conv2d(4, 4, 4, groups=2)
    before = conv.weight.detach().clone()
    register_negative_diagonal(conv, dims=(2, 3))
    assert_negative(conv.weight.diagonal(dim1=2, dim2=3))
    assert_only_diagonal_differs(conv.weight, before, lambda w: w.diagonal(dim1=2, dim2=3))
    gru = register_negative_diagonal(nn.GRU(3, 9), "weight_hh_l0", dims=(1, 0))
    assert_negative(gru.weight_hh_l0.diagonal())
    register_negative_diagonal(nn.LSTM(3, 4), "weight_ih_l0", dims=(0, 1))  # of no blocks


# All that there are, with the arguments that they need.
INITIALIZERS = {name: () for name in vars(nn.init) if name.endswith("_") and name[0] != "_"}
INITIALIZERS |= {"uniform_": (-2.0, 2.0), "normal_": (0.0, 2.0), "constant_": (1.5,)}
INITIALIZERS |= {"sparse_": (0.5,)}


def fits(initializer: str, shape: torch.Size) -> bool:
    if initializer in ("eye_", "sparse_"):
        return len(shape) == 2
    if initializer == "dirac_":
        return 3 <= len(shape) <= 5
    return len(shape) > 1


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


WAYS = {
    "ours": remove_negative_diagonal,
    "pytorch's": parametrize.remove_parametrizations,
    "pytorch's, not baked": partial(parametrize.remove_parametrizations, leave_parametrized=False),
}
every_way = pytest.mark.parametrize("remove", WAYS.values(), ids=WAYS)


@every_layer_once_every_map_somewhere()
def test_removal_leaves_a_stock_module_with_the_last_weight(layer, map):
    torch.manual_seed(0)
    module = layer.make()
    stock = copy.deepcopy(module)
    parameters = list(module.parameters())
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    weight = getattr(module, layer.tensor_name).detach().clone()
    assert remove_negative_diagonal(module, layer.tensor_name) is module
    assert type(module) is type(stock)
    assert_same_bits(getattr(module, layer.tensor_name), weight)
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]
    assert list(module.state_dict()) == list(stock.state_dict())
    assert vars(module).keys() == vars(stock).keys()
    assert not module._load_state_dict_pre_hooks


@every_way
def test_after_any_removal_nothing_of_ours_acts_and_another_map_can_come(remove):
    layer = nn.Linear(3, 3)
    for kind in ("exp", "softplus", "clamp"):
        register_negative_diagonal(layer, map=kind, infeasible="reflect")
        remove(layer, "weight")
        assert type(layer) is nn.Linear
        assert vars(layer).keys() == vars(nn.Linear(3, 3)).keys()
        assert not layer._load_state_dict_pre_hooks
        state = nn.Linear(3, 3).state_dict()
        layer.load_state_dict(state, strict=True)
        assert torch.equal(layer.weight, state["weight"])


@every_way
def test_one_of_two_tensors_of_one_of_two_modules_goes_alone(remove):
    layer = register_negative_diagonal(nn.GRU(3, 3, 2), "weight_hh*", infeasible="reflect")
    other = copy.deepcopy(layer)
    kept = other.weight_hh_l0.clone()
    remove(layer, "weight_hh_l0")
    assert isinstance(layer.weight_hh_l0, nn.Parameter)
    assert torch.equal(other.weight_hh_l0, kept)
    other.weight_hh_l0 = 2 * kept
    torch.testing.assert_close(other.weight_hh_l0, 2 * kept)
    state = nn.GRU(3, 3, 2).state_dict()
    layer.load_state_dict(state, strict=True)
    for each in (layer, pickle.loads(pickle.dumps(copy.deepcopy(layer)))):
        assert torch.equal(each.weight_hh_l0, state["weight_hh_l0"])
        assert isinstance(each.weight_hh_l0, nn.Parameter)
        assert (grouped(3)(each.weight_hh_l1) < 0).all()
    register_negative_diagonal(layer, "weight_hh_l0")
    assert (grouped(3)(layer.weight_hh_l0) < 0).all()
    for name in ("weight_hh_l0", "weight_hh_l1"):
        remove(layer, name)
    assert type(layer) is nn.GRU
    for each in (layer, other):
        each(torch.ones(1, 1, 3))[0].sum().backward()


def test_removal_with_a_graph_that_is_alive_under_swapping():
    model = register_negative_diagonal(nn.Sequential(linear(), linear()), "*.weight")
    before = [layer.weight.detach().clone() for layer in model]
    swap = torch.__future__.set_swap_module_params_on_conversion
    with switched(swap, there=True, back=False):
        output = model(torch.ones(1, 3))
        remove_negative_diagonal(model, "*.weight")
    output.sum().backward()
    for layer, weight in zip(model, before, strict=True):
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, weight)
