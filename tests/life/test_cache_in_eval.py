"""``cache_in_eval``: one weight for all reads, until anything changes."""

import copy
import io
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.support.asserts import computed, original_of, registered, weight_of
from tests.support.tables import LAYERS, every_layer, every_layer_once_every_map_somewhere

NAMES = ("linear", "conv2d_groups", "transposed1d", "lstm")


def cached_in_eval(layer, map="exp"):
    return registered(layer, map, cache_in_eval=True).eval()


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_eval_without_gradients_computes_once(map, layer):
    module = cached_in_eval(layer, map)
    with torch.no_grad():
        assert weight_of(layer, module) is weight_of(layer, module)
        assert torch.equal(weight_of(layer, module), computed(layer, module))
        first = weight_of(layer, module)
    with torch.inference_mode():
        assert weight_of(layer, module) is first
    assert not first.is_inference()
    assert not first.requires_grad


def test_nothing_is_cached_unless_asked():
    layer = LAYERS["linear"]
    module = registered(layer, "exp").eval()
    with torch.no_grad():
        assert weight_of(layer, module) is not weight_of(layer, module)


@every_layer(*NAMES)
def test_train_mode_and_gradients_drop_the_cache(layer):
    module = cached_in_eval(layer)
    with torch.no_grad():
        kept = weight_of(layer, module)
        module.train()
        assert weight_of(layer, module) is not weight_of(layer, module)
        module.eval()
        again = weight_of(layer, module)
        assert again is not kept
    weight_of(layer, module).sum().backward()
    assert layer.diagonal(original_of(layer, module).grad).count_nonzero()
    with torch.no_grad():
        assert weight_of(layer, module) is not again


@every_layer(*NAMES)
def test_neither_copies_nor_pickles_carry_the_cache(layer):
    module = cached_in_eval(layer)
    empty = len(pickle.dumps(module))
    with torch.no_grad():
        kept = weight_of(layer, module)
    assert len(pickle.dumps(module)) == empty
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for replica in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            assert weight_of(layer, replica) is not kept
            original_of(layer, replica).sub_(1)
            assert torch.equal(weight_of(layer, replica), computed(layer, replica))
            assert weight_of(layer, module) is kept


def test_transforms_and_substituted_originals_pass_the_cache_by():
    module = cached_in_eval(LAYERS["linear"])
    key = "parametrizations.weight.original"
    other = torch.zeros(4, 4)
    with torch.no_grad():
        before = module.weight.clone()
        output = torch.func.functional_call(module, {key: other}, (torch.eye(4),))
        torch.testing.assert_close(output - module.bias, -torch.eye(4))
        assert torch.equal(module.weight, before)

        def run(original):
            return torch.func.functional_call(module, {key: original}, (torch.eye(4),))

        batch = torch.vmap(run)(torch.stack([other, other - 1]))
    torch.testing.assert_close(batch[0] - module.bias, -torch.eye(4))
    found = (batch[1] - module.bias).diagonal()
    torch.testing.assert_close(found, -torch.tensor(-1.0).exp().expand(4))
    assert torch.equal(module.weight, before)


def test_a_compiled_model_sees_changes():
    layer = LAYERS["linear"]
    module = cached_in_eval(layer)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.eye(4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
        original_of(layer, module).sub_(1)
        torch.testing.assert_close(compiled(x), x @ computed(layer, module).T + module.bias)


def test_an_exported_model_does_not_hold_the_cached_weight():
    module = cached_in_eval(LAYERS["linear"])
    with torch.no_grad():
        module(torch.eye(4))
        exported = torch.export.export(module, (torch.eye(4),))
    assert not exported.constants
    original = exported.state_dict["parametrizations.weight.original"]
    with torch.no_grad():
        original.zero_()
        found = exported.module()(torch.eye(4)) - module.bias
    assert (found.diagonal() < 0).all()


def test_fake_tensors_leave_nothing_behind():
    module = cached_in_eval(LAYERS["linear"])
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            module(torch.eye(4))
        assert type(module.weight) is torch.Tensor
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert type(module(torch.eye(4))) is not torch.Tensor


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_traced_graph_does_not_hold_the_cached_weight(mode):
    module, x = cached_in_eval(LAYERS["linear"]), torch.eye(4)
    with torch.no_grad():
        module(x)
        graph = make_fx(module, tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        original_of(LAYERS["linear"], module).sub_(1)
        torch.testing.assert_close(graph(x), module(x))
