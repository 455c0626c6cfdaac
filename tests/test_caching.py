"""``parametrize.cached()`` and ``cache_in_eval``: never stale, never without gradients."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.cases import LAYERS, MAPS
from tests.living import original_of, registered, value_of, weight_of

NAMES = ["linear", "conv2d_groups", "transposed1d", "lstm"]


def computed(layer, module):
    """The weight, past every cache."""
    chain = module.parametrizations[layer.tensor_name]
    with torch.no_grad():
        return chain[0]._constrained(chain.original)


def cached_in_eval(name, map="exp"):
    layer = LAYERS[name]
    return layer, registered(layer, MAPS[map], cache_in_eval=True).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
def test_a_block_computes_each_weight_once(map, name):
    layer = LAYERS[name]
    module = registered(layer, MAPS[map])
    expected = value_of(layer, module)
    with parametrize.cached():
        assert weight_of(layer, module) is weight_of(layer, module)
        with parametrize.cached():
            assert weight_of(layer, module) is weight_of(layer, module)
        assert weight_of(layer, module) is weight_of(layer, module)
        assert torch.equal(weight_of(layer, module), expected)
    assert weight_of(layer, module) is not weight_of(layer, module)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
def test_gradients_accumulate_over_the_uses_in_a_block(map, name):
    layer = LAYERS[name]
    module = registered(layer, MAPS[map])
    twice = 2 * weight_of(layer, module).square().sum()
    (expected,) = torch.autograd.grad(twice, original_of(layer, module))
    with parametrize.cached():
        loss = weight_of(layer, module).square().sum() + weight_of(layer, module).square().sum()
        loss.backward()
    torch.testing.assert_close(original_of(layer, module).grad, expected)


def test_a_block_ends_with_an_exception():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")

    def stop():
        with parametrize.cached():
            weight_of(layer, module)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert weight_of(layer, module) is not weight_of(layer, module)


def test_a_block_sees_steps_assignments_and_loading():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with parametrize.cached():
        for _ in range(3):
            layer.run(module).square().sum().backward()
            optimizer.step()
            assert torch.equal(weight_of(layer, module), computed(layer, module))
        module.weight = -torch.eye(4)
        torch.testing.assert_close(weight_of(layer, module), -torch.eye(4))
        module.load_state_dict({"weight": -2 * torch.eye(4), "bias": torch.zeros(4)})
        torch.testing.assert_close(weight_of(layer, module), -2 * torch.eye(4))
        module.double()
        assert weight_of(layer, module).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_a_block_works_in_and_around_inference_mode(name):
    layer = LAYERS[name]
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


def test_a_block_keeps_nothing_that_a_transform_made():
    module = registered(LAYERS["linear"], "exp")
    key = "parametrizations.weight.original"

    def run(original):
        return torch.func.functional_call(module, {key: original}, (torch.eye(4),)).sum()

    with parametrize.cached():
        before = module.weight
        grads = torch.vmap(torch.func.grad(run))(torch.zeros(2, 4, 4))
        assert torch.equal(grads, (torch.ones(4, 4) - 2 * torch.eye(4)).expand(2, 4, 4))
        assert module.weight is before


def test_a_block_tells_copies_and_modules_apart():
    layer = LAYERS["linear"]
    module = registered(layer, "exp")
    with parametrize.cached(), torch.no_grad():
        first = weight_of(layer, module)
        replicas = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        for shift, replica in enumerate(replicas, start=1):
            original_of(layer, replica).sub_(shift)
        weights = [first, *(weight_of(layer, replica) for replica in replicas)]
        for replica, weight in zip([module, *replicas], weights, strict=True):
            assert torch.equal(weight, computed(layer, replica))
    assert not torch.equal(weights[0], weights[1])


def test_a_block_serves_modules_beside_ours():
    stock = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(stock)
    module = registered(LAYERS["linear"], "exp")
    with parametrize.cached():
        assert stock.weight is stock.weight
        assert module.weight is module.weight
        assert stock.weight is not module.weight


def test_tensors_inside_a_block_can_be_removed_and_registered():
    module = registered(LAYERS["linear"], "exp")
    with parametrize.cached():
        before = module.weight.detach().clone()
        remove_negative_diagonal(module)
        assert torch.equal(module.weight, before)
        register_negative_diagonal(module, map="softplus")
        torch.testing.assert_close(module.weight, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
def test_eval_without_gradients_computes_once(map, name):
    layer, module = cached_in_eval(name, map)
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


def step(layer, module):
    optimizer = torch.optim.SGD([original_of(layer, module)], lr=0.1)
    original_of(layer, module).grad = torch.ones_like(original_of(layer, module))
    optimizer.step()


def write_in_place(layer, module):
    original_of(layer, module).mul_(0.5)


def new_storage(layer, module):
    original = original_of(layer, module)
    original.set_(original.detach().clone() - 1)


def data_of_another_tensor(layer, module):
    original_of(layer, module).data = original_of(layer, module).detach().clone() - 1


def to_double(layer, module):
    module.double()


def assigned(layer, module):
    setattr(module, layer.tensor_name, computed(layer, module) * 2)


def loaded(layer, module):
    state = {key: value - 1 for key, value in layer.make().state_dict().items()}
    module.load_state_dict(state)


def loaded_by_assignment(layer, module):
    state = copy.deepcopy(module.state_dict())
    state[f"parametrizations.{layer.tensor_name}.original"] -= 1
    module.load_state_dict(state, assign=True)


def another_parameter(layer, module):
    chain = module.parametrizations[layer.tensor_name]
    chain.original = nn.Parameter(chain.original.detach() - 1)


def written_on_the_weight(layer, module):
    weight_of(layer, module).fill_(3.0)


def trained_for_a_while(layer, module):
    module.train()
    step(layer, module)
    module.eval()


CHANGES = [
    step,
    write_in_place,
    new_storage,
    data_of_another_tensor,
    to_double,
    assigned,
    loaded,
    loaded_by_assignment,
    another_parameter,
    written_on_the_weight,
    trained_for_a_while,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:.*reflected")
def test_every_change_is_seen(change, map, name):
    layer, module = cached_in_eval(name, map)
    with torch.no_grad():
        before = weight_of(layer, module)
        change(layer, module)
        assert weight_of(layer, module) is not before
        assert torch.equal(weight_of(layer, module), computed(layer, module))


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_and_gradients_drop_the_cache(name):
    layer, module = cached_in_eval(name)
    parametrization = module.parametrizations[layer.tensor_name][0]
    with torch.no_grad():
        weight_of(layer, module)
        assert parametrization._snapshot is not None
        module.train()
        assert parametrization._snapshot is None
        assert weight_of(layer, module) is not weight_of(layer, module)
        module.eval()
        weight_of(layer, module)
    weight_of(layer, module).sum().backward()
    assert parametrization._snapshot is None
    assert layer.diagonal(original_of(layer, module).grad).count_nonzero()


@pytest.mark.parametrize("name", NAMES)
def test_neither_copies_nor_pickles_carry_the_cache(name):
    layer, module = cached_in_eval(name)
    empty = len(pickle.dumps(module))
    with torch.no_grad():
        kept = weight_of(layer, module)
    assert len(pickle.dumps(module)) == empty
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for replica in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert replica.parametrizations[layer.tensor_name][0]._snapshot is None
        with torch.no_grad():
            original_of(layer, replica).sub_(1)
            assert torch.equal(weight_of(layer, replica), computed(layer, replica))
            assert weight_of(layer, module) is kept


def test_transforms_and_substituted_originals_pass_the_cache_by():
    _, module = cached_in_eval("linear")
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
    layer, module = cached_in_eval("linear")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.eye(4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
        original_of(layer, module).sub_(1)
        torch.testing.assert_close(compiled(x), x @ computed(layer, module).T + module.bias)


def test_an_exported_model_does_not_hold_the_cached_weight():
    _, module = cached_in_eval("linear")
    with torch.no_grad():
        module(torch.eye(4))
        exported = torch.export.export(module, (torch.eye(4),))
    assert not exported.constants
    original = exported.state_dict["parametrizations.weight.original"]
    with torch.no_grad():
        original.zero_()
        found = exported.module()(torch.eye(4)) - module.bias
    assert (found.diagonal() < 0).all()


@pytest.mark.parametrize("inside_cached", [False, True])
def test_threads_never_see_a_stale_weight_or_one_without_gradients(inside_cached):
    """Four servers read while a thread trains: the diagonal a server sees is never older than
    what training had published when it began to read."""
    rounds, servers = 150, 4
    layer = register_negative_diagonal(nn.Linear(8, 8), map="sign_flip", cache_in_eval=True).eval()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.fill_(-1.0)
    published, failures, done = [1.0], [], threading.Event()

    def serve() -> None:
        try:
            with torch.no_grad():
                while not done.is_set():
                    oldest = published[0]
                    # The slowest entry tells whether any part of the weight is older.
                    if -layer.weight.max().item() < oldest:
                        failures.append("stale")
                        return
        except BaseException as error:
            failures.append(repr(error))
            raise

    def train() -> None:
        try:
            for count in range(rounds):
                if not layer.weight.requires_grad:
                    failures.append("no gradients")
                    return
                with torch.no_grad():
                    original.sub_(1.0)
                published[0] = 2.0 + count
        except BaseException as error:
            failures.append(repr(error))
            raise
        finally:
            done.set()

    threads = [threading.Thread(target=serve) for _ in range(servers)]
    threads.append(threading.Thread(target=train))
    with parametrize.cached() if inside_cached else torch.enable_grad():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    assert layer.weight.allclose(torch.tensor(-1.0 - rounds))
