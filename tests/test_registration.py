import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, SoftplusTransform
from torch.nn import functional as F
from torch.nn.utils import parametrize

from negdiag_param import (
    NegExpDiagonal,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.asserts import assert_negative, assert_only_diagonal_differs, assert_same_bits
from tests.cases import DTYPES, LAYERS, MAPS, MARGINS, Raw, grouped


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_registration_keeps_the_layer_and_reflects_its_diagonal(layer, map_, margin):
    case = LAYERS[layer]
    torch.manual_seed(0)
    module = case.make().eval()
    before = getattr(module, case.tensor_name)
    value = before.detach().clone()
    result = register_negative_diagonal(
        module, case.tensor_name, map=MAPS[map_], margin=margin, **case.options
    )
    assert result is module
    assert not module.training
    weight = getattr(module, case.tensor_name)
    chain = module.parametrizations[case.tensor_name]
    assert chain.original is before
    assert weight.dtype == value.dtype
    assert weight.stride() == value.stride()
    assert_negative(case.diagonal(weight), margin)
    assert_only_diagonal_differs(weight, value, case.diagonal)
    kept = case.diagonal(value).abs() > margin + 1e-2
    torch.testing.assert_close(
        case.diagonal(weight)[kept], -case.diagonal(value)[kept].abs(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_registered_layers_train_and_stay_negative(layer, map_, dtype):
    case = LAYERS[layer]
    torch.manual_seed(0)
    module = case.make().to(dtype)
    optimizer = torch.optim.SGD(list(module.parameters()), lr=0.02)
    register_negative_diagonal(module, case.tensor_name, map=MAPS[map_], **case.options)
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.run(module).float().square().mean()
        loss = loss + (getattr(module, case.tensor_name).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        assert_negative(case.diagonal(getattr(module, case.tensor_name)))
    original = module.parametrizations[case.tensor_name].original
    if layer != "raw_buffer":
        assert (case.diagonal(original.grad) != 0).any()


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_assignment_sets_the_weight(layer, map_):
    case = LAYERS[layer]
    torch.manual_seed(0)
    module = register_negative_diagonal(
        case.make(), case.tensor_name, map=MAPS[map_], **case.options
    )
    module.parametrizations[case.tensor_name][0].infeasible = "error"
    old = getattr(module, case.tensor_name).detach()
    value = torch.randn(old.shape)
    case.diagonal(value).copy_(-torch.rand_like(case.diagonal(value)) - 0.1)
    strides = module.parametrizations[case.tensor_name].original.stride()
    transposed = value.movedim(0, -1).contiguous().movedim(-1, 0)
    setattr(module, case.tensor_name, transposed)
    weight = getattr(module, case.tensor_name)
    torch.testing.assert_close(weight, value)
    assert_only_diagonal_differs(weight, value, case.diagonal)
    assert weight.stride() == strides
    value.fill_(7.0)
    assert not (getattr(module, case.tensor_name) == 7.0).any()
    setattr(module, case.tensor_name, weight)
    torch.testing.assert_close(getattr(module, case.tensor_name), weight, rtol=1e-6, atol=0)
    setattr(module, case.tensor_name, nn.Parameter(weight.detach() * 1.5))
    torch.testing.assert_close(getattr(module, case.tensor_name), weight * 1.5)


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_removal_leaves_a_stock_module_with_the_last_weight(layer, map_):
    case = LAYERS[layer]
    torch.manual_seed(0)
    module = case.make()
    stock = copy.deepcopy(module)
    parameters = list(module.parameters())
    register_negative_diagonal(module, case.tensor_name, map=MAPS[map_], **case.options)
    weight = getattr(module, case.tensor_name).detach().clone()
    assert remove_negative_diagonal(module, case.tensor_name) is module
    assert type(module) is type(stock)
    assert_same_bits(getattr(module, case.tensor_name), weight)
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]
    assert list(module.state_dict()) == list(stock.state_dict())
    assert vars(module).keys() == vars(stock).keys()
    assert not module._load_state_dict_pre_hooks


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_ecosystems_door_works_too(layer, map_):
    case = LAYERS[layer]
    module = case.make()
    helped = register_negative_diagonal(
        copy.deepcopy(module), case.tensor_name, map=MAPS[map_], **case.options
    )
    parametrization = copy.deepcopy(helped.parametrizations[case.tensor_name][0])
    parametrization.infeasible = "reflect"
    parametrize.register_parametrization(module, case.tensor_name, parametrization)
    assert_same_bits(getattr(module, case.tensor_name), getattr(helped, case.tensor_name))


def test_the_bare_door_warns_about_reflected_entries():
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, 1.0)
    with pytest.warns(UserWarning, match=r"weight: .* 3 of 3 entries .* reflected"):
        parametrize.register_parametrization(layer, "weight", NegExpDiagonal())


@pytest.mark.parametrize("map_", MAPS)
def test_zero_initialised_layers_start_negative_and_train(map_):
    layer = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(layer.weight)
    register_negative_diagonal(layer, map=MAPS[map_])
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


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("name", CENTERED)
def test_center_taps_are_the_main_diagonal_of_the_convolution(name, map_):
    torch.manual_seed(0)
    conv = CENTERED[name]()
    size = (4,) * (conv.weight.ndim - 2)
    before = as_matrix(conv, conv.in_channels, size).detach()
    register_negative_diagonal(conv, map=MAPS[map_], taps="center")
    after = as_matrix(conv, conv.in_channels, size)
    assert_negative(after.diagonal())
    torch.testing.assert_close(
        after - torch.diag(after.diagonal()), before - torch.diag(before.diagonal())
    )


def test_a_laplacian_stencil_stays_representable():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    register_negative_diagonal(conv, taps="center")
    stencil = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    conv.weight = stencil
    torch.testing.assert_close(conv.weight.detach(), stencil)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_default_taps_of_a_grouped_convolution(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, groups=groups)
    before = conv.weight.detach().clone()
    register_negative_diagonal(conv)
    assert_negative(grouped(groups)(conv.weight))
    assert_only_diagonal_differs(conv.weight, before, grouped(groups))


def test_options_reach_the_parametrization():
    layer = register_negative_diagonal(
        nn.Linear(2, 2), map=NegExpDiagonal, margin=0.5, infeasible="reflect", cache_in_eval=True
    )
    text = repr(layer.parametrizations.weight[0])
    assert text == (
        "NegExpDiagonal(margin=0.5, dims=(0, 1), infeasible='reflect', cache_in_eval=True)"
    )


def test_an_instance_is_a_template():
    template = NegExpDiagonal(margin=0.5)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    register_negative_diagonal(model, "*.weight", map=template)
    first, second = (layer.parametrizations.weight[0] for layer in model)
    assert first is not second
    assert first is not template
    assert first.margin == second.margin == 0.5


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


def test_a_transform_with_a_memory_can_be_copied():
    softplus = SoftplusTransform(cache_size=1)
    negated = ComposeTransform([softplus, AffineTransform(0.0, -1.0)], cache_size=1)
    layer = register_negative_diagonal(nn.Linear(3, 3), map=negated)
    layer(torch.randn(2, 3)).sum().backward()
    assert_same_bits(copy.deepcopy(layer).weight, layer.weight)


def test_infeasible_policies_on_assignment():
    value = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    layer = register_negative_diagonal(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"weight: .* 1 of 2 entries .* largest 1, .* reflected"):
        layer.weight = value
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))
    layer = register_negative_diagonal(nn.Linear(2, 2), infeasible="reflect")
    layer.weight = value
    torch.testing.assert_close(layer.weight.detach(), -torch.eye(2))
    layer.parametrizations.weight[0].infeasible = "error"
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weight: expected a diagonal negative, got 1 of 2"):
        layer.weight = value * 2
    assert_same_bits(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("layer", ["linear", "conv2d_groups", "conv2d_center", "transposed1d"])
def test_compiled_layers_equal_eager_ones_without_graph_breaks(layer, map_, dtype):
    case = LAYERS[layer]
    torch.manual_seed(0)
    module = register_negative_diagonal(case.make().to(dtype), map=MAPS[map_], **case.options)
    expected = case.run(module)
    expected.float().square().sum().backward()
    grads = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    found = case.run(compiled)
    torch.testing.assert_close(found, expected)
    found.float().square().sum().backward()
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_no_graph_breaks_through_inductor():
    layer = register_negative_diagonal(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    explanation = torch._dynamo.explain(layer)(x)
    assert explanation.graph_break_count == 0
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert (layer.parametrizations.weight.original.grad.diagonal() != 0).all()


@pytest.mark.parametrize("map_", MAPS)
def test_functional_call_and_ensembles(map_):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=MAPS[map_])
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


@pytest.mark.parametrize("map_", MAPS)
def test_autocast_leaves_the_constraint_alone(map_):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=MAPS[map_])
    with torch.autocast("cpu", torch.bfloat16):
        assert_negative(layer.weight.diagonal())
        assert layer.weight.dtype == torch.float32
        layer(torch.randn(2, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


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
