"""Whatever happens to a registered layer, it goes on computing, constraining and training."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import (
    init_,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.cases import LAYERS, MAPS, Layer
from tests.living import (
    assert_alive,
    assert_independent,
    assert_negative,
    original_of,
    registered,
    stock_with,
    value_of,
    weight_of,
)

Event = Callable[[Layer, nn.Module, Path], nn.Module]
NAMES = ["linear", "conv2d_groups", "transposed1d", "gru", "lstm", "raw"]
COPIES: dict[str, Event] = {}
CHANGES: dict[str, Event] = {}


def copies(event: Event) -> Event:
    """Marks an event after which another module has the same weight."""
    COPIES[event.__name__] = event
    return event


def changes(event: Event) -> Event:
    """Marks an event that the module itself goes through, with a new weight or its own."""
    CHANGES[event.__name__] = event
    return event


def twin(layer: Layer, module: nn.Module) -> nn.Module:
    """Another registered module with the same map, and other values."""
    template = module.parametrizations[layer.tensor_name][0]
    other = register_negative_diagonal(layer.make(), layer.tensor_name, map=template)
    assert not torch.equal(value_of(layer, other), value_of(layer, module))
    return other


@copies
def deepcopy(layer, module, path):
    return copy.deepcopy(module)


@copies
def deepcopy_of_a_deepcopy(layer, module, path):
    return copy.deepcopy(copy.deepcopy(module))


@copies
def deepcopy_after_a_forward_pass(layer, module, path):
    layer.run(module)
    return copy.deepcopy(module)


@copies
def deepcopy_after_a_backward_pass(layer, module, path):
    layer.run(module).sum().backward()
    return copy.deepcopy(module)


@copies
def deepcopy_while_cached(layer, module, path):
    with parametrize.cached(), torch.no_grad():
        weight_of(layer, module)
        replica = copy.deepcopy(module)
        original_of(layer, replica).sub_(0.25)
        assert not torch.equal(weight_of(layer, replica), weight_of(layer, module))
        original_of(layer, replica).copy_(original_of(layer, module))
    return replica


@copies
def averaged_model(layer, module, path):
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(module)
    averaged.update_parameters(module)
    return averaged.module


@copies
def pickled(layer, module, path):
    return pickle.loads(pickle.dumps(module))


@copies
def pickled_after_a_forward_pass(layer, module, path):
    layer.run(module)
    return pickle.loads(pickle.dumps(module))


@copies
def saved_and_loaded_as_a_whole(layer, module, path):
    torch.save(module, path / "module.pt")
    return torch.load(path / "module.pt", weights_only=False)


@copies
def state_dict(layer, module, path):
    torch.save(module.state_dict(), path / "state.pt")
    other = twin(layer, module)
    other.load_state_dict(torch.load(path / "state.pt", weights_only=True))
    return other


@copies
def state_dict_assigned(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    return other


@copies
def plain_checkpoint(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(stock_with(layer, module).state_dict())
    return other


@copies
def plain_checkpoint_assigned(layer, module, path):
    other = twin(layer, module)
    other.load_state_dict(stock_with(layer, module).state_dict(), assign=True)
    return other


@copies
def plain_checkpoint_from_meta(layer, module, path):
    other = twin(layer, module).to("meta")
    other.load_state_dict(stock_with(layer, module).state_dict(), assign=True)
    return other


@copies
def plain_state_dict_through_a_stock_module(layer, module, path):
    stock = layer.make()
    stock.load_state_dict(plain_state_dict(module), strict=True)
    other = twin(layer, module)
    other.load_state_dict(stock.state_dict(), strict=True)
    return other


@copies
def safetensors(layer, module, path):
    save_file(module.state_dict(), path / "state.safetensors")
    other = twin(layer, module)
    other.load_state_dict(load_file(path / "state.safetensors"))
    return other


@copies
def safetensors_of_the_plain_state(layer, module, path):
    save_file(plain_state_dict(module), path / "state.safetensors")
    other = twin(layer, module)
    other.load_state_dict(load_file(path / "state.safetensors"))
    return other


@copies
def assignment(layer, module, path):
    other = twin(layer, module)
    with torch.no_grad():
        for name, parameter in stock_with(layer, module).named_parameters():
            setattr(other, name, parameter)
        for name, buffer in module.named_buffers():
            other.get_buffer(name).copy_(buffer)
    return other


@copies
def registered_from_a_stock_module(layer, module, path):
    template = module.parametrizations[layer.tensor_name][0]
    return register_negative_diagonal(stock_with(layer, module), layer.tensor_name, map=template)


@changes
def meta_then_to_empty_and_reset(layer, module, path):
    module.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.reset_parameters()
    return module


@changes
def reset_parameters(layer, module, path):
    before = value_of(layer, module)
    module.reset_parameters()
    assert not torch.equal(value_of(layer, module), before)
    return module


@changes
def initialized(layer, module, path):
    init_(module, layer.tensor_name, nn.init.constant_, 0.5)
    assert value_of(layer, module).abs().allclose(torch.tensor(0.5))
    return module


@changes
def train_and_eval(layer, module, path):
    before = layer.run(module)
    torch.testing.assert_close(layer.run(module.eval()), before)
    return module.train()


@changes
def to_double(layer, module, path):
    before = value_of(layer, module)
    module.to(torch.float64)
    assert weight_of(layer, module).dtype == torch.float64
    torch.testing.assert_close(value_of(layer, module).float(), before)
    return module


@changes
def bfloat16_and_back(layer, module, path):
    before = value_of(layer, module)
    module.bfloat16()
    assert weight_of(layer, module).dtype == torch.bfloat16
    assert_negative(layer, module)
    torch.testing.assert_close(value_of(layer, module).float(), before, rtol=0.05, atol=0.01)
    return module.float()


@changes
def half_and_back(layer, module, path):
    before = value_of(layer, module)
    module.half()
    assert weight_of(layer, module).dtype == torch.float16
    assert_negative(layer, module)
    torch.testing.assert_close(value_of(layer, module).float(), before, rtol=0.01, atol=0.01)
    return module.float()


@changes
def removed_and_registered_again(layer, module, path):
    before = value_of(layer, module)
    template = module.parametrizations[layer.tensor_name][0]
    remove_negative_diagonal(module, layer.tensor_name)
    register_negative_diagonal(module, layer.tensor_name, map=template)
    torch.testing.assert_close(value_of(layer, module), before)
    return module


@changes
def copy_removed(layer, module, path):
    before = value_of(layer, module)
    baked = remove_negative_diagonal(copy.deepcopy(module), layer.tensor_name)
    assert not parametrize.is_parametrized(baked)
    assert torch.equal(value_of(layer, baked), before)
    return module


@changes
def original_of_a_copy_removed(layer, module, path):
    replica = copy.deepcopy(module)
    remove_negative_diagonal(module, layer.tensor_name)
    return replica


@changes
def functional_call_with_another_original(layer, module, path):
    key = f"parametrizations.{layer.tensor_name}.original"
    other = original_of(layer, module).detach() - 1
    with torch.no_grad():
        found = functional_call_output(layer, module, {key: other})
        replica = copy.deepcopy(module)
        original_of(layer, replica).copy_(other)
        torch.testing.assert_close(found, layer.run(replica))
    return module


def functional_call_output(layer, module, tensors):
    class Call(nn.Module):
        def parameters(self):
            return module.parameters()

        def forward(self, x):
            return functional_call(module, tensors, (x,))

    return layer.run(Call())


@changes
def frozen_and_thawed(layer, module, path):
    module.requires_grad_(False)
    assert not weight_of(layer, module).requires_grad
    return module.requires_grad_(True)


@changes
def shared_memory(layer, module, path):
    before = value_of(layer, module)
    module.share_memory()
    assert original_of(layer, module).is_shared()
    assert torch.equal(value_of(layer, module), before)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("event", COPIES)
def test_another_module_gets_the_weight(event, map, name, tmp_path):
    layer = LAYERS[name]
    module = registered(layer, MAPS[map])
    before = value_of(layer, module)
    replica = COPIES[event](layer, module, tmp_path)
    assert torch.equal(value_of(layer, module), before)
    torch.testing.assert_close(value_of(layer, replica), before)
    for alive in (replica, module):
        assert_alive(layer, alive)
    assert_independent(layer, module, replica)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize(
    ("event", "name"),
    # A raw module has nothing to reset.
    [(e, n) for e in CHANGES for n in NAMES if "reset" not in e or n != "raw"],
)
def test_the_module_lives_on(event, map, name, tmp_path):
    layer = LAYERS[name]
    bystander = registered(layer, MAPS[map])
    before = value_of(layer, bystander)
    module = CHANGES[event](layer, copy.deepcopy(bystander), tmp_path)
    assert_alive(layer, module)
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, bystander)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
def test_removing_leaves_a_stock_module(map, name):
    layer = LAYERS[name]
    module = layer.make()
    stock = type(module)
    keys = list(module.state_dict())
    parameter = weight_of(layer, module)
    register_negative_diagonal(module, layer.tensor_name, map=MAPS[map], **layer.options)
    before, output = value_of(layer, module), layer.run(module)
    assert remove_negative_diagonal(module, layer.tensor_name) is module
    assert type(module) is stock
    assert list(module.state_dict()) == keys
    assert list(dict(module.named_parameters())) == [k for k in keys if k != "constant"]
    assert weight_of(layer, module) is parameter
    assert torch.equal(parameter, before)
    torch.testing.assert_close(layer.run(module), output)
    layer.run(copy.deepcopy(module)).sum().backward()
    assert layer.run(pickle.loads(pickle.dumps(module))) is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_made_before_trains_the_layer(optimizer, map, name):
    layer = LAYERS[name]
    torch.manual_seed(0)
    module = layer.make()
    steps = optimizer(module.parameters(), lr=0.1)
    register_negative_diagonal(module, layer.tensor_name, map=MAPS[map], **layer.options)
    bystander = copy.deepcopy(module)
    before = value_of(layer, module)
    for _ in range(3):
        steps.zero_grad()
        # Toward a positive diagonal, which it must not reach.
        (weight_of(layer, module) - 1).square().sum().backward()
        steps.step()
    assert_negative(layer, module)
    moved = layer.diagonal(value_of(layer, module)) != layer.diagonal(before)
    assert moved.all()
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, module)


def test_a_copy_of_a_model_keeps_what_is_shared_within_it():
    layer = LAYERS["linear"]
    shared = registered(layer, "exp")
    model = nn.ModuleDict({"one": shared, "two": shared})
    replica = copy.deepcopy(model)
    assert replica["one"] is replica["two"]
    assert_alive(layer, replica["one"])
    assert_independent(layer, replica["one"], shared)


def _square(queue, answers) -> None:
    module = queue.get()
    with torch.no_grad():
        answers.put(module.weight.sum().item())
        module.parametrizations.weight.original.zero_()
        answers.put(module.weight.sum().item())


def test_a_spawned_process_shares_the_original():
    module = registered(LAYERS["linear"], "exp").share_memory()
    context = torch.multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=_square, args=(queue, answers))
    process.start()
    queue.put(module)
    expected = module.weight.sum().item()
    assert answers.get(timeout=120) == pytest.approx(expected)
    assert answers.get(timeout=120) == pytest.approx(-4)
    process.join()
    assert module.weight.sum().item() == pytest.approx(-4)


def test_a_pickle_in_memory_is_no_larger_than_its_tensors_ask_for():
    layer = registered(LAYERS["linear"], "exp")
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    layer.eval()
    with torch.no_grad():
        layer.weight  # noqa: B018
    again = io.BytesIO()
    torch.save(layer, again)
    assert len(again.getvalue()) == len(buffer.getvalue())


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
