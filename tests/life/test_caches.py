"""``cache_in_eval`` and ``parametrize.cached()``: one weight for all reads, until a change."""

import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from negdiag_param._parametrization.cache import WeightCache
from tests.support.asserts import computed, original_of, registered, weight_of
from tests.support.modules import LearnedScale
from tests.support.optimizers import OPTIMIZERS, Make
from tests.support.tables import LAYERS, Layer, every_layer, every_layer_once_every_map_somewhere
from tests.support.versions import NEEDS_COMPILER

LINEAR = LAYERS["linear"]
KEY = "parametrizations.weight.original"
X = torch.eye(4)
some_layers = every_layer("linear", "lstm")  # which keeps its weights in a list as well
some_layers_every_map = every_layer_once_every_map_somewhere(
    "linear", "lstm", somewhere=("linear",)
)


def cached_in_eval(layer: Layer = LINEAR, map="exp") -> nn.Module:
    return registered(layer, map, cache_in_eval=True).eval()


Change = Callable[[Layer, nn.Module], object]


def step(make: Make, **compiled: str) -> Change:
    def change(layer, module):
        original = original_of(layer, module)
        original.grad = torch.ones_like(original)
        step = make([original]).step
        (torch.compile(step, **compiled) if compiled else step)()

    return change


def in_training(layer, module):
    step(OPTIMIZERS["sgd"])(layer, module.train())
    module.eval()


def another_dtype(layer, module):
    module.to(torch.float32 if weight_of(layer, module).dtype == torch.float64 else torch.float64)


def lowered(layer: Layer, module: nn.Module) -> Tensor:
    return original_of(layer, module).detach().clone() - 1


def loaded(layer, module):
    module.load_state_dict({key: value - 1 for key, value in layer.make().state_dict().items()})


def loaded_by_assignment(layer, module):
    changed = {f"parametrizations.{layer.tensor_name}.original": lowered(layer, module)}
    module.load_state_dict(module.state_dict() | changed, assign=True)


def another_parameter(layer, module):
    chain = module.parametrizations[layer.tensor_name]
    chain.original = nn.Parameter(lowered(layer, module))


def registered_anew(layer, module):
    remove_negative_diagonal(module, layer.tensor_name)
    register_negative_diagonal(module, layer.tensor_name, map="softplus", cache_in_eval=True)
    original_of(layer, module).sub_(1)


CHANGES: dict[str, Change] = {
    **{name: step(make) for name, make in OPTIMIZERS.items()},
    "in training": in_training,
    "in place": lambda layer, module: original_of(layer, module).mul_(0.5),
    "new storage": lambda layer, m: original_of(layer, m).set_(lowered(layer, m)),
    "data of another tensor": lambda layer, m: setattr(
        original_of(layer, m), "data", lowered(layer, m)
    ),
    "another dtype": another_dtype,
    "assigned": lambda layer, module: setattr(
        module, layer.tensor_name, computed(layer, module) * 2
    ),
    "loaded": loaded,
    "loaded by assignment": loaded_by_assignment,
    "another parameter": another_parameter,
    "registered anew": registered_anew,
    "written on the weight": lambda layer, module: weight_of(layer, module).fill_(3.0),
}
every_block = pytest.mark.parametrize("block", [nullcontext, parametrize.cached])


def assert_seen(change: Change, layer: Layer, module: nn.Module) -> None:
    with torch.no_grad():
        before = weight_of(layer, module)
        change(layer, module)
        assert weight_of(layer, module) is not before
        assert torch.equal(weight_of(layer, module), computed(layer, module))


@every_block
@some_layers
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*reflected")
def test_every_change_is_seen(change, layer, block):
    module = cached_in_eval(layer)
    with block():
        for _ in range(2):
            assert_seen(CHANGES[change], layer, module)


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.integration)]
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_compiled_step_is_seen(fused, backend):
    torch._dynamo.reset()
    change = step(lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), fused=fused), backend=backend)
    assert_seen(change, LINEAR, cached_in_eval())


def test_a_change_of_what_a_map_has_learnt_is_seen():
    module = cached_in_eval(map=LearnedScale)
    assert_seen(lambda *_: module.parametrizations.weight[0].scale.mul_(2), LINEAR, module)


@every_block
def test_memory_that_is_used_again_is_not_taken_for_the_same(block):
    module = register_negative_diagonal(nn.Linear(64, 64), cache_in_eval=True).eval()
    original = module.parametrizations.weight.original
    with torch.no_grad(), block():
        for _ in range(20):
            original.data = torch.randn(64, 64)
            original.data = torch.randn(64, 64)  # often where the first was that was read
            assert torch.equal(module.weight, copy.deepcopy(module).weight)


@some_layers_every_map
def test_eval_without_gradients_computes_once(map, layer):
    module = cached_in_eval(layer, map)
    with torch.no_grad():
        first = weight_of(layer, module)
        assert weight_of(layer, module) is first
        assert torch.equal(first, computed(layer, module))
    with torch.inference_mode():
        assert weight_of(layer, module) is first
    assert not first.is_inference()
    assert not first.requires_grad
    plain = registered(layer, map).eval()
    with torch.no_grad():  # but only where it was asked for
        assert weight_of(layer, plain) is not weight_of(layer, plain)


@some_layers
def test_train_mode_and_gradients_drop_the_cache(layer):
    module = cached_in_eval(layer)
    with torch.no_grad():
        kept = weight_of(layer, module)
        module.train()
        assert weight_of(layer, module) is not weight_of(layer, module)
        again = weight_of(layer, module.eval())
        assert again is not kept
    weight_of(layer, module).sum().backward()
    assert layer.diagonal(original_of(layer, module).grad).count_nonzero()
    with torch.no_grad():
        assert weight_of(layer, module) is not again


@some_layers
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


@every_block
def test_transforms_and_substituted_originals_pass_the_cache_by(block):
    module = cached_in_eval()

    def run(original: Tensor) -> Tensor:
        return torch.func.functional_call(module, {KEY: original}, (X,)) - module.bias

    with torch.no_grad(), block():
        before = module.weight.clone()
        torch.testing.assert_close(run(torch.zeros(4, 4)), -torch.eye(4))
        batch = torch.vmap(run)(torch.stack([torch.zeros(4, 4), -torch.ones(4, 4)]))
        torch.testing.assert_close(batch[0], -torch.eye(4))
        torch.testing.assert_close(batch[1].diagonal(), -torch.tensor(-1.0).exp().expand(4))
        grads = torch.vmap(torch.func.grad(lambda o: run(o).sum()))(torch.zeros(2, 4, 4))
        assert torch.equal(grads, (torch.ones(4, 4) - 2 * torch.eye(4)).expand(2, 4, 4))
        assert torch.equal(module.weight, before)


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager", fullgraph=True)


def exported(module: nn.Module) -> nn.Module:
    program = torch.export.export(module, (X,))
    assert not program.constants
    return program.module()


def traced(mode: str) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    return lambda module: make_fx(module, tracing_mode=mode, _allow_non_fake_inputs=True)(X)


GRAPHS = {
    "compiled": compiled,
    "exported": exported,
    **{f"traced, {mode}": traced(mode) for mode in ("real", "fake", "symbolic")},
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_graph_holds_the_cached_weight(graph):
    module = cached_in_eval()
    with torch.no_grad():
        torch.testing.assert_close(module(X), module(X))
        made = GRAPHS[graph](module)
        torch.testing.assert_close(made(X), module(X))
        original_of(LINEAR, module).sub_(1)
        torch.testing.assert_close(made(X), X @ computed(LINEAR, module).T + module.bias)


def test_fake_tensors_leave_nothing_behind():
    module = cached_in_eval()
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            module(X)
        assert type(module.weight) is torch.Tensor
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert type(module(X)) is not torch.Tensor


@some_layers_every_map
def test_a_block_computes_each_weight_once_and_gradients_accumulate_over_its_uses(map, layer):
    module = registered(layer, map)
    twice = 2 * weight_of(layer, module).square().sum()
    (expected,) = torch.autograd.grad(twice, original_of(layer, module))
    with parametrize.cached():
        first = weight_of(layer, module)
        with parametrize.cached():
            assert weight_of(layer, module) is first
        assert weight_of(layer, module) is first
        assert torch.equal(first, computed(layer, module))
        (first.square().sum() + weight_of(layer, module).square().sum()).backward()
    torch.testing.assert_close(original_of(layer, module).grad, expected)
    assert weight_of(layer, module) is not weight_of(layer, module)


@some_layers
def test_a_block_works_in_and_around_inference_mode(layer):
    module = registered(layer, "exp")
    with parametrize.cached():
        with torch.inference_mode():
            first = weight_of(layer, module)
            assert weight_of(layer, module) is first
            assert torch.equal(first, computed(layer, module))
        assert weight_of(layer, module).requires_grad
    with torch.inference_mode(), parametrize.cached():
        assert weight_of(layer, module) is weight_of(layer, module)
        assert not weight_of(layer, module).requires_grad


def test_a_block_serves_other_parametrizations_beside_and_before_ours():
    stock = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    chained = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))  # writes to its buffers
    register_negative_diagonal(chained)
    with parametrize.cached():
        for module in (stock, chained, registered(LINEAR)):
            assert module.weight is module.weight


ROUNDS, SERVERS = 150, 4


@every_block
def test_threads_never_see_a_stale_weight_or_one_without_gradients(block):
    """Four servers read while a thread trains: the diagonal a server sees is never older than
    what training had published when it began to read."""
    layer = register_negative_diagonal(nn.Linear(8, 8), map="sign_flip", cache_in_eval=True).eval()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.fill_(-1.0)
    published, done = [1.0], threading.Event()

    def serve() -> None:
        with torch.no_grad():
            while not done.is_set():
                oldest = published[0]
                # The slowest entry tells whether any part of the weight is older.
                assert -layer.weight.max().item() >= oldest

    def train() -> None:
        try:
            for count in range(ROUNDS):
                assert layer.weight.requires_grad
                with torch.no_grad():
                    original.sub_(1.0)
                published[0] = 2.0 + count
        finally:
            done.set()

    with block(), ThreadPoolExecutor(SERVERS + 1) as pool:
        for future in [*(pool.submit(serve) for _ in range(SERVERS)), pool.submit(train)]:
            future.result()
    assert layer.weight.allclose(torch.tensor(-1.0 - ROUNDS))


@pytest.mark.parametrize("block", [nullcontext, parametrize.cached])
def test_what_is_read_again_takes_one_look(monkeypatch, block):
    layer = register_negative_diagonal(nn.Linear(3, 3), cache_in_eval=True).eval()
    with torch.no_grad(), block():
        seen = [layer.weight, layer.weight]
        monkeypatch.setattr(WeightCache, "read", None)
        assert layer.weight is seen[0]
