"""What a registered module goes through, and every way in which another one gets the weight.

It goes on computing, constraining and training; two modules live on apart. Resets equal those of
the stock module.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import (
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import (
    assert_alive,
    assert_independent,
    assert_negative,
    assert_same_state,
    diagonal_of,
    parametrization_of,
    reflected,
    registered,
    stock_with,
    value_of,
    weight_of,
)
from tests.support.tables import LAYERS, Layer, every_layer_once_every_map_somewhere

Event = Callable[[Layer, nn.Module, Path], nn.Module]
State = dict[str, Any]


def twin(layer: Layer, module: nn.Module) -> nn.Module:
    """Another registered module with the same map, and other values."""
    template = parametrization_of(layer, module)
    other = register_negative_diagonal(layer.make(), layer.tensor_name, map=template)
    assert not torch.equal(value_of(layer, other), value_of(layer, module))
    return other


def revived(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def copying(again: Callable[[nn.Module], nn.Module], backward: bool = False) -> Event:
    """After a forward pass."""

    def event(layer, module, path):
        output = layer.run(module).sum()
        if backward:
            output.backward()
        return again(module)

    return event


def while_cached(again: Callable[[nn.Module], nn.Module]) -> Event:
    def event(layer, module, path):
        with parametrize.cached():
            layer.run(module)
            replica = again(module)
            assert weight_of(layer, replica) is not weight_of(layer, module)
            assert torch.equal(weight_of(layer, replica), weight_of(layer, module))
            assert weight_of(layer, module).requires_grad
        return replica

    return event


def averaged(layer, module, path):
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        average.update_parameters(module)
    return average.module


def through_a_file(whole: Any, path: Path, weights_only: bool = True) -> Any:
    torch.save(whole, path / "whole.pt")
    return torch.load(path / "whole.pt", weights_only=weights_only)


def through_safetensors(state: State, path: Path) -> State:
    save_file(state, path / "state.safetensors")
    return load_file(path / "state.safetensors")


def loading(
    state_of: Callable[[Layer, nn.Module, Path], State],
    into: Callable[[nn.Module], nn.Module] = lambda module: module,
    **how: bool,
) -> Event:
    def event(layer, module, path):
        other = into(twin(layer, module))
        other.load_state_dict(state_of(layer, module, path), **how)
        return other

    return event


def plain(layer: Layer, module: nn.Module, path: Path) -> State:
    return stock_with(layer, module).state_dict()


OTHERS: dict[str, Event] = {
    "deepcopy": lambda layer, module, path: copy.deepcopy(copy.deepcopy(module)),
    "deepcopy after forward": copying(copy.deepcopy),
    "deepcopy after backward": copying(copy.deepcopy, backward=True),
    "deepcopy while cached": while_cached(copy.deepcopy),
    "pickle while cached": while_cached(revived),
    "averaged": averaged,
    "pickle": lambda layer, module, path: revived(module),
    "pickle after forward": copying(revived),
    "saved as a whole": lambda layer, module, path: through_a_file(module, path, False),
    "state": loading(lambda layer, module, path: through_a_file(module.state_dict(), path)),
    "state, assigned": loading(lambda _, m, path: copy.deepcopy(m.state_dict()), assign=True),
    "plain": loading(plain),
    "plain, assigned": loading(plain, assign=True),
    "plain, from meta": loading(plain, into=lambda module: module.to("meta"), assign=True),
    "safetensors": loading(lambda _, m, path: through_safetensors(m.state_dict(), path)),
    "safetensors, plain": loading(
        lambda _, m, path: through_safetensors(plain_state_dict(m), path)
    ),
}


def reset_after_to_empty(layer, module, path):
    module.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.reset_parameters()
    return module


SAME: dict[str, Event] = {
    "reset after to_empty": reset_after_to_empty,
    "bfloat16 and back": lambda layer, module, path: module.bfloat16().float(),
}


@every_layer_once_every_map_somewhere("linear", "lstm", "raw", somewhere=("linear",))
@pytest.mark.parametrize("event", OTHERS)
def test_another_module_gets_the_weight(event, map, layer, tmp_path):
    module = registered(layer, map)
    before = value_of(layer, module)
    replica = OTHERS[event](layer, module, tmp_path)
    assert torch.equal(value_of(layer, module), before)
    torch.testing.assert_close(value_of(layer, replica), before)
    for alive in (replica, module):
        assert_alive(layer, alive)
    assert_independent(layer, module, replica)


@pytest.mark.parametrize("event", SAME)
@every_layer_once_every_map_somewhere("linear", "conv2d_groups", "lstm", somewhere=("linear",))
def test_the_module_lives_on(event, layer, map, tmp_path):
    bystander = registered(layer, map)
    before = value_of(layer, bystander)
    module = SAME[event](layer, copy.deepcopy(bystander), tmp_path)
    assert_alive(layer, module)
    assert torch.equal(value_of(layer, bystander), before)
    assert_alive(layer, bystander)


class WithSlots(nn.Linear):
    __slots__ = ("note",)


class WithState(nn.Linear):
    def __getstate__(self):
        return {**self.__dict__, "scratch": None}


class WithOwnCopy(nn.Linear):
    def __deepcopy__(self, memo):
        replica = type(self)(self.in_features, self.out_features)
        memo[id(self)] = replica
        if parametrize.is_parametrized(self):
            replica.parametrizations = copy.deepcopy(self.parametrizations, memo)
            del replica._parameters["weight"]
        replica.load_state_dict(self.state_dict())
        replica.copies = getattr(self, "copies", 0) + 1
        return replica


def test_how_a_module_customises_its_copies_is_respected():
    layer, slotted, stateful, own = LAYERS["linear"], WithSlots(4, 4), WithState(4, 4), WithOwnCopy
    slotted.note, stateful.scratch = "kept", [1]
    module = register_negative_diagonal(own(4, 4))
    for each in (slotted, stateful):
        register_negative_diagonal(each)
    replica = copy.deepcopy(module)
    assert copy.deepcopy(slotted).note == "kept"
    assert revived(stateful).scratch is None
    assert torch.equal(revived(stateful).weight, stateful.weight)
    assert replica.copies == copy.deepcopy(own(4, 4)).copies == 1
    assert_alive(layer, replica)
    assert_independent(layer, module, replica)


def test_copies_keep_what_is_shared_in_a_model():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.ModuleDict({"a": encoder, "b": encoder, "c": nn.Linear(4, 4)})
    register_negative_diagonal(model, "*.weight")
    replica = revived(copy.deepcopy(model))
    assert replica["a"][0] is replica["b"][0]
    assert replica["a"][0] is not model["a"][0]
    assert len(list(negative_diagonals(replica))) == 2


def test_a_shallow_copy_shares_the_original():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    replica = copy.copy(layer)
    assert replica.parametrizations.weight.original is layer.parametrizations.weight.original
    assert torch.equal(replica.weight, layer.weight)


RESET = [name for name in LAYERS if hasattr(LAYERS[name].make(), "reset_parameters")]


@every_layer_once_every_map_somewhere(*RESET)
def test_a_reset_equals_that_of_the_stock_module(layer, map):
    module, stock = registered(layer, map), layer.make()
    bystander = copy.deepcopy(module)
    before = value_of(layer, bystander)
    for resetting in (module, stock):
        torch.manual_seed(11)
        resetting.reset_parameters()
    for key, value in stock.named_parameters():
        expected = reflected(layer, value) if key == layer.tensor_name else value
        torch.testing.assert_close(getattr(module, key), expected)
    assert torch.equal(value_of(layer, bystander), before)
    assert_negative(diagonal_of(layer, module))


SEVERAL = {
    "both layers": (lambda: nn.GRU(3, 4, 2), "weight_hh*", {}),
    "projections of inputs": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", {"blocks": 3}),
    "that of outputs": (lambda: nn.MultiheadAttention(4, 2), "out_proj.weight", {}),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_all_tensors_are_drawn_in_the_order_of_the_stock_module(case):
    make, name, options = SEVERAL[case]
    both = []
    for door in (lambda module, *_, **__: module, register_negative_diagonal):
        torch.manual_seed(0)
        module = door(make(), name, map="sign_flip", **options)
        torch.manual_seed(11)
        (getattr(module, "reset_parameters", None) or module._reset_parameters)()
        both.append({key: value.abs() for key, value in plain_state_dict(module).items()})
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_reset_that_fails_changes_nothing(error):
    class Failing(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "made"):
                raise error("stopped")

    failing = register_negative_diagonal(Failing(4, 4))
    failing.made = True
    before = copy.deepcopy(failing)
    with pytest.raises(error, match="stopped"):
        failing.reset_parameters()
    assert_same_state(failing, before)


def test_a_reset_reflects_where_assignments_are_refused():
    layer = remove_negative_diagonal(register_negative_diagonal(nn.Linear(4, 4)))
    register_negative_diagonal(layer, infeasible="error")
    for _ in range(5):
        layer.reset_parameters()
        assert_negative(layer.weight.diagonal())


def answer(queue, answers) -> None:
    module = queue.get()
    with torch.no_grad():
        answers.put(module.weight.sum().item())
        module.parametrizations.weight.original.zero_()
        answers.put(module.weight.sum().item())


@pytest.mark.slow
def test_a_spawned_process_shares_the_original():
    module = registered(LAYERS["linear"], "exp").share_memory()
    context = torch.multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=answer, args=(queue, answers))
    process.start()
    queue.put(module)
    expected = module.weight.sum().item()
    assert answers.get() == pytest.approx(expected)
    assert answers.get() == pytest.approx(-4)
    process.join()
    assert module.weight.sum().item() == pytest.approx(-4)
