"""Copies and pickles of modules that customise how they are copied, and of whole models."""

import copy
import pickle

import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import negative_diagonals, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import assert_alive, assert_independent
from tests.support.tables import BUILT_IN, LAYERS


class WithSlots(nn.Linear):
    __slots__ = ("note",)


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


class WithState(nn.Linear):
    def __getstate__(self):
        return {**self.__dict__, "scratch": None}


def test_slots_and_own_states_are_copied():
    slotted = WithSlots(3, 3)
    slotted.note = "kept"
    register_negative_diagonal(slotted)
    assert copy.deepcopy(slotted).note == "kept"
    stateful = WithState(3, 3)
    stateful.scratch = [1]
    register_negative_diagonal(stateful)
    revived = pickle.loads(pickle.dumps(stateful))
    assert revived.scratch is None
    assert torch.equal(revived.weight, stateful.weight)


def test_a_custom_deepcopy_is_respected():
    layer = LAYERS["linear"]
    module = register_negative_diagonal(WithOwnCopy(4, 4))
    plain = copy.deepcopy(WithOwnCopy(4, 4))
    assert plain.copies == 1
    replica = copy.deepcopy(module)
    assert replica.copies == 1
    assert_alive(layer, replica)
    assert_independent(layer, module, replica)


def test_copying_keeps_what_is_shared_in_a_model():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.ModuleDict({"a": encoder, "b": encoder, "c": nn.Linear(4, 4)})
    register_negative_diagonal(model, "*.weight")
    replica = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert replica["a"][0] is replica["b"][0]
    assert replica["a"][0] is not model["a"][0]
    assert len(list(negative_diagonals(replica))) == 2


def test_copy_bake_and_go_on_training():
    model = register_negative_diagonal(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "*.weight")
    baked = remove_negative_diagonal(copy.deepcopy(model), "*.weight")
    assert type(baked[0]) is nn.Linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(3, 4)
    torch.testing.assert_close(baked(x), model(x))
    model(x).square().sum().backward()
    optimizer.step()
    assert not baked(x).allclose(model(x))


def test_a_shallow_copy_shares_the_original():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    replica = copy.copy(layer)
    assert replica.parametrizations.weight.original is layer.parametrizations.weight.original
    assert torch.equal(replica.weight, layer.weight)


def test_a_bare_class_copies_and_pickles_its_parametrization():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", BUILT_IN["exp"](infeasible="reflect"))
    replica = copy.deepcopy(layer)
    assert torch.equal(replica.weight, layer.weight)
    parametrization = pickle.loads(pickle.dumps(layer.parametrizations.weight[0]))
    original = layer.parametrizations.weight.original
    assert torch.equal(parametrization(original), layer.weight)


def test_a_recurrent_network_can_be_copied_after_a_forward_pass():
    rnn = register_negative_diagonal(nn.LSTM(3, 3), "weight_hh_l0")
    x = torch.randn(2, 1, 3)
    expected = rnn(x)[0]
    replica = copy.deepcopy(rnn)
    torch.testing.assert_close(replica(x)[0], expected)
    rnn.weight_hh_l0 = -torch.ones(12, 3)
    torch.testing.assert_close(replica(x)[0], expected)
