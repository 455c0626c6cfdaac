"""PyTorch's traps for parametrizations: what a naive one falls into, this package does not."""

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import init_, register_negative_diagonal
from tests.support.modules import Half
from tests.support.tables import grouped

ORIGINAL = "parametrizations.weight.original"


class Flip(nn.Module):
    """As one writes it first."""

    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-original.diagonal().abs())
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class Exp(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        mask = torch.eye(len(original)).bool()
        return torch.where(mask, -original.exp(), original)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.where(torch.eye(len(weight)).bool(), weight.neg().log(), weight)


Door = Callable[..., nn.Module]


def naively(module: nn.Module, name: str = "weight", map: str = "sign_flip") -> nn.Module:
    parametrization = {"sign_flip": Flip, "exp": Exp}[map]()
    return parametrize.register_parametrization(module, name, parametrization)


def ours(module: nn.Module, name: str = "weight", map: str = "sign_flip") -> nn.Module:
    return register_negative_diagonal(module, name, map=map)


def feasible() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.diagonal().abs_().neg_()
    return layer


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


TRAPS: dict[str, Callable[[Door], bool]] = {}


def trap(function: Callable[[Door], bool]) -> Callable[[Door], bool]:
    """Marks what is true of the naive parametrization and not of ours."""
    TRAPS[function.__name__] = function
    return function


@trap
def assigning_aliases_the_value(door):
    layer, value = door(feasible()), feasible().weight.detach().clone()
    layer.weight = value
    value.fill_(-7.0)
    return bool((layer.weight == -7.0).any())


@trap
def assigning_another_shape_resizes_the_parameter(door):
    layer = door(feasible())
    return not fails(lambda: setattr(layer, "weight", -torch.eye(6)))


@trap
def a_parameter_cannot_be_assigned(door):
    layer = door(feasible())
    return fails(lambda: setattr(layer, "weight", nn.Parameter(-torch.ones(4, 4))))


@trap
def cached_weights_lose_their_gradients(door):
    layer = door(feasible())
    with parametrize.cached():
        with torch.no_grad():
            layer.weight  # noqa: B018
        return not layer.weight.requires_grad


@trap
def cached_weights_go_stale(door):
    layer = door(feasible())
    with parametrize.cached(), torch.no_grad():
        before = layer.weight.clone()
        layer.parametrizations.weight.original.sub_(1)
        return torch.equal(layer.weight, before)


@trap
def a_server_that_caches_disturbs_a_training_thread(door):
    layer, inside, trained = door(feasible()), threading.Event(), threading.Event()

    def serve() -> None:
        with parametrize.cached(), torch.no_grad():
            layer.weight  # noqa: B018
            inside.set()
            trained.wait(60)

    server = threading.Thread(target=serve)
    server.start()
    assert inside.wait(60)
    without_gradients = not layer.weight.requires_grad
    trained.set()
    server.join()
    return without_gradients


@trap
def a_copy_in_a_cached_block_has_the_weight_of_its_source(door):
    layer = door(feasible())
    replica = copy.deepcopy(layer)
    with torch.no_grad(), parametrize.cached():
        replica.parametrizations.weight.original.sub_(1)
        return torch.equal(layer.weight, replica.weight)


@trap
def removal_from_a_copy_breaks_its_source(door):
    layer = door(feasible())
    parametrize.remove_parametrizations(copy.deepcopy(layer), "weight")
    return not hasattr(layer, "weight")


@trap
def a_module_does_not_pickle(door):
    return fails(lambda: pickle.dumps(door(feasible())))


@trap
def a_recurrent_layer_cannot_be_copied_after_a_forward_pass(door):
    layer = door(nn.RNN(3, 4), "weight_hh_l0")
    layer(torch.zeros(2, 1, 3))
    return fails(lambda: copy.deepcopy(layer))


@trap
def the_diagonal_of_stacked_gates_is_that_of_the_first(door):
    torch.manual_seed(0)
    layer = door(nn.LSTM(3, 8), "weight_hh_l0")
    return bool((grouped(4)(layer.weight_hh_l0) > 0).any())


@trap
def a_plain_checkpoint_does_not_load(door):
    return fails(lambda: door(feasible()).load_state_dict(feasible().state_dict()))


@trap
def a_plain_checkpoint_is_ignored_without_strict(door):
    layer = door(feasible())
    layer.load_state_dict({"weight": feasible().weight.detach() - 1}, strict=False)
    return torch.equal(layer.weight, feasible().weight)


@trap
def a_checkpoint_of_another_map_loads(door):
    state = door(feasible(), map="exp").state_dict()
    return not fails(lambda: door(feasible()).load_state_dict(state))


@trap
def a_reset_does_not_reach_the_weight(door):
    layer = door(feasible())
    before = layer.weight.clone()
    layer.reset_parameters()
    return torch.equal(layer.weight, before)


@trap
def what_is_initialised_is_lost(door):
    layer = door(feasible())
    if door is naively:
        nn.init.constant_(layer.weight, -3.0)
    else:
        init_(layer, "weight", nn.init.constant_, -3.0)
    return not (layer.weight == -3).any()


@trap
def registration_makes_half_of_the_diagonal_nan(door):
    torch.manual_seed(0)
    return bool(door(nn.Linear(16, 16), map="exp").weight.isnan().any())


@trap
def a_tied_weight_is_rewritten(door):
    model = nn.ModuleList([feasible(), feasible()])
    model[1].weight = model[0].weight
    # Who is given one layer alone cannot see the other.
    return not fails(lambda: door(model[0]) if door is naively else door(model, "0.weight"))


@trap
def the_value_jumps_where_there_is_a_parametrization_already(door):
    layer = parametrize.register_parametrization(feasible(), "weight", Half())
    return not torch.allclose(door(layer, map="exp").weight, feasible().weight)


@trap
def a_second_registration_goes_unnoticed(door):
    return not fails(lambda: door(door(feasible())))


@trap
def a_masked_map_has_nan_gradients(door):
    layer = door(feasible(), map="exp")
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original[0, 1] = 200.0
    exported = torch.export.export(layer, (torch.eye(4),)).module()
    layer(torch.eye(4)).sum().backward()
    eager, original.grad = original.grad, None
    exported(torch.eye(4)).sum().backward()
    return bool(eager.isnan().any() or exported.get_parameter(ORIGINAL).grad.isnan().any())


@pytest.mark.parametrize("name", TRAPS)
def test_only_a_naive_parametrization_falls_into_the_trap(name):
    assert TRAPS[name](naively)
    assert not TRAPS[name](ours)
