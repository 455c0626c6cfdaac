"""Names, dotted names and patterns; tied and shared tensors; what monitoring yields."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.cases import BUILT_IN, LAYERS, MAPS, Raw
from tests.living import registered, weight_of


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.ModuleDict({
        "embedding": nn.Embedding(7, 4),
        "encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        "head": nn.Linear(4, 7),
    })


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in negative_diagonals(model)]


@pytest.mark.parametrize("register", [register_negative_diagonal])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head.weight", ["head.weight"]),
        ("encoder.layers.1.linear1.weight", ["encoder.layers.1.linear1.weight"]),
        ("*.linear?.weight", [f"encoder.layers.{i}.linear{j}.weight" for i in "01" for j in "12"]),
        ("encoder.layers.[1].linear2.*", ["encoder.layers.1.linear2.weight"]),
        ("head.*", ["head.weight"]),
    ],
)
def test_a_name_or_pattern_means_tensors_with_a_diagonal(register, pattern, expected):
    model = transformer()
    assert register(model, pattern) is model
    assert names(model) == expected
    remove_negative_diagonal(model, pattern if pattern != "head.*" else "head.w*")
    assert names(model) == []
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_patterns_work_for_removal_and_initialization_again():
    model = register_negative_diagonal(transformer(), "encoder.*.weight")
    everything = names(model)
    remove_negative_diagonal(model, "*.0.*")
    left = [name for name in everything if ".0." not in name]
    assert names(model) == left
    init_(model, "*", nn.init.constant_, -2.0)
    for _, diagonal in negative_diagonals(model):
        assert diagonal.allclose(torch.tensor(-2.0))


def test_a_pattern_leaves_buffers_and_vectors_alone():
    model = nn.ModuleDict({"raw": Raw()})
    register_negative_diagonal(model, "raw.[!b]*")
    assert names(model) == ["raw.square"]
    vectors = nn.ModuleDict({"raw": Raw()})
    register_negative_diagonal(vectors, "raw.[sv]*", dims=())
    assert names(vectors) == ["raw.square", "raw.vector"]


@pytest.mark.parametrize("name", ["*.linear3.weight", "encoder.layers.0.linear1.wieght", "head"])
@pytest.mark.parametrize("call", [register_negative_diagonal, remove_negative_diagonal])
def test_no_match_names_what_is_near(call, name):
    with pytest.raises(ValueError, match=r"near names: .*(linear|head)"):
        call(transformer(), name)


def test_a_pattern_over_vectors_only_has_no_match():
    with pytest.raises(ValueError, match="no match"):
        register_negative_diagonal(transformer(), "*.bias")


def test_all_or_nothing():
    model = transformer()
    with torch.no_grad():
        model["encoder"].layers[1].linear2.weight[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.linear2\.weight.*NaN"):
        register_negative_diagonal(model, "*.linear?.weight")
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_a_pattern_over_registered_tensors_is_refused_as_a_whole():
    model = register_negative_diagonal(transformer(), "head.weight")
    with pytest.raises(ValueError, match=r"head\.weight: .*registered"):
        register_negative_diagonal(model, "*.weight")
    assert names(model) == ["head.weight"]


@pytest.mark.parametrize("name", ["head.weight", "embedding.weight", "*.weight"])
def test_tied_tensors_are_refused_by_both_names(name):
    model = transformer()
    model["head"].weight = model["embedding"].weight
    before = model["head"].weight.clone()
    with pytest.raises(ValueError, match="tied") as error:
        register_negative_diagonal(model, name)
    assert "head.weight" in str(error.value)
    assert "embedding.weight" in str(error.value)
    assert torch.equal(model["head"].weight, before)
    assert names(model) == []
    register_negative_diagonal(model, "encoder.*.linear1.weight")


def test_shared_storage_is_tied_too():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = nn.Parameter(model[0].weight.detach())
    with pytest.raises(ValueError, match=r"0\.weight.*1\.weight"):
        register_negative_diagonal(model, "0.weight")


def test_a_tensor_tied_to_a_registered_one_is_refused():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    register_negative_diagonal(model, "0.weight")
    model[1].weight = model[0].parametrizations.weight.original
    with pytest.raises(ValueError, match="tied"):
        register_negative_diagonal(model, "1.weight")


def test_one_module_under_two_names_is_not_tied():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    register_negative_diagonal(model, "*.weight")
    assert names(model) == ["0.weight"]
    model(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("map", MAPS)
def test_the_diagonals_are_those_of_the_weight(map, name):
    layer = LAYERS[name]
    module = registered(layer, MAPS[map], margin=0.1)
    ((found, diagonal),) = negative_diagonals(module)
    assert found == layer.tensor_name
    expected = layer.diagonal(weight_of(layer, module))
    assert diagonal.numel() == expected.numel()
    torch.testing.assert_close(diagonal.reshape(-1).sort()[0], expected.reshape(-1).sort()[0])


@pytest.mark.parametrize("map", BUILT_IN)
def test_the_diagonals_are_differentiable(map):
    model = register_negative_diagonal(transformer(), "*.linear?.weight", map=map)
    sum(diagonal.square().sum() for _, diagonal in negative_diagonals(model)).backward()
    for layer in model["encoder"].layers:
        original = layer.linear1.parametrizations.weight.original
        found, original.grad = original.grad, None
        layer.linear1.weight.diagonal().square().sum().backward()
        torch.testing.assert_close(found, original.grad)


def test_a_stock_model_has_no_diagonals():
    assert list(negative_diagonals(transformer())) == []


@pytest.mark.parametrize("bad", [None, 3, b"weight"])
def test_arguments_of_the_wrong_type(bad):
    with pytest.raises(TypeError, match="tensor_name"):
        register_negative_diagonal(nn.Linear(3, 3), bad)
    with pytest.raises(TypeError, match="module"):
        register_negative_diagonal(bad)
