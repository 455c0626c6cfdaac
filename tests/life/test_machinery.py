"""A registered module behaves as a bare one in the machinery of Python, PyTorch and others."""

import abc
import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

from negdiag_param import (
    ClampDiagonal,
    NegExpDiagonal,
    init_,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import assert_negative
from tests.support.modules import Half, linear


class Metaclass(type):
    pass


class WithMetaclass(metaclass=Metaclass):
    pass


Abstract = abc.ABCMeta("Abstract", (), {})


@pytest.mark.parametrize("mixin", [object, Abstract, WithMetaclass, nn.Identity])
def test_its_class_can_be_mixed_with_others(mixin):
    layer = register_negative_diagonal(nn.Linear(3, 3))
    mixed = type(mixin)("Mixed", (type(layer), mixin), {})(3, 3)
    register_negative_diagonal(mixed)
    assert_negative(copy.deepcopy(mixed).weight.diagonal())
    assert isinstance(copy.deepcopy(mixed), mixin)


def test_its_class_makes_modules_that_can_be_registered():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    derived = type("Derived", (type(layer),), {})
    for cls in (type(layer), derived):
        module = register_negative_diagonal(cls(3, 3))
        assert_negative(module.weight.diagonal())
        assert_negative(copy.deepcopy(module).weight.diagonal())
        remove_negative_diagonal(module)
        assert isinstance(module.weight, nn.Parameter)


class Registers(nn.Linear):
    """Registers itself when it is made."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        register_negative_diagonal(self)


def test_a_module_that_registers_itself_can_be_made_by_its_class():
    module = Registers()
    again = type(module)()
    assert type(again) is type(module)
    for other in (again, copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert_negative(other.weight.diagonal())


class Opens(nn.Linear):
    """Holds what cannot be copied, which its factory makes anew."""

    def __reduce__(self):
        return opened, (3,), {k: v for k, v in vars(self).items() if k != "handle"}


def opened(n: int) -> Opens:
    module = Opens(n, n)
    module.handle = lambda: None
    return module


class NeedsArguments(nn.Linear):
    def __new__(cls, n):
        module = super().__new__(cls)
        vars(module)["n"] = n
        return module

    def __init__(self, n):
        super().__init__(n, n)

    def __getnewargs__(self):
        return (self.n,)


@pytest.mark.parametrize("make", [opened, NeedsArguments])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_made_as_the_class_makes_it(make, again):
    module = register_negative_diagonal(make(3))
    replica = again(module)
    assert type(replica) is type(module)
    assert hasattr(replica, "handle") == hasattr(module, "handle")
    assert torch.equal(replica.weight, module.weight)
    with torch.no_grad():
        replica.parametrizations.weight.original.sub_(1)
    assert not torch.equal(replica.weight, module.weight)


def test_a_class_put_around_it_stays():
    class Mixin:
        pass

    layer = register_negative_diagonal(nn.Linear(3, 3))
    layer.__class__ = type("Mixed", (Mixin, type(layer)), {})
    assert isinstance(copy.deepcopy(layer), Mixin)
    register_negative_diagonal(layer, "bias")
    for module in (layer, copy.deepcopy(layer)):
        assert isinstance(module, Mixin)
        module(torch.ones(1, 3)).sum().backward()
        assert (module.bias < 0).all()


def test_a_look_up_of_attributes_of_its_own_is_asked():
    class Asks(nn.Linear):
        asked = 0

        def __getattr__(self, name: str):
            Asks.asked += name == "parametrizations"
            return super().__getattr__(name)

    layer = register_negative_diagonal(Asks(3, 3))
    for _ in range(3):
        before = Asks.asked
        assert_negative(layer.weight.diagonal())
        assert Asks.asked > before


def test_an_attribute_error_in_a_map_is_shown():
    class Broken(NegExpDiagonal):
        broken = False

        def map(self, x: Tensor) -> Tensor:
            return x.nonsense() if self.broken else -x.exp()

        def inverse(self, d: Tensor) -> Tensor:
            return (-d).log()

    layer = register_negative_diagonal(nn.Linear(3, 3), map=Broken)
    Broken.broken = True
    with pytest.raises(RuntimeError, match=r"weight: AttributeError: .*nonsense"):
        layer.weight  # noqa: B018


class Halved(nn.Module):
    """A parametrization whose original is twice as long."""

    def forward(self, x: Tensor) -> Tensor:
        return x[: len(x) // 2]

    def right_inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y, y])


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_other_tensors_are_assigned_as_pytorch_does_it():
    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "bias", Halved(), unsafe=True)
    register_negative_diagonal(module)
    module.bias = torch.ones(4)
    assert torch.equal(module.bias, torch.ones(4))


@pytest.mark.parametrize("register", [register_negative_diagonal, lambda module: module])
def test_other_tensors_are_cached_as_pytorch_does_it(register):
    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "bias", Noisy())
    register(module)
    with FlopCounterMode(display=False), parametrize.cached():
        assert torch.equal(module.bias, module.bias)
    assert not torch.equal(module.bias, module.bias)


def chain(map: str = "clamp") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    register_negative_diagonal(model, "0.weight", map=map)
    parametrize.register_parametrization(model[0], "weight", Half())
    return model


def test_a_chain_refuses_a_checkpoint_of_another_map_and_keeps_its_weight():
    source, target = chain("exp"), chain("softplus")
    with torch.no_grad():
        source[1].weight.fill_(7.0)
    before = target[0].weight.clone()
    with pytest.raises(RuntimeError, match=r"0\.weight.*expected a checkpoint of softplus"):
        target.load_state_dict(source.state_dict())
    assert torch.equal(target[0].weight, before)
    assert (target[1].weight == 7).all(), "later layers are loaded as ever"


def test_a_chain_loads_what_was_written_before_registration():
    module, plain = nn.Linear(3, 3), linear(-2.0)
    parametrizations.weight_norm(module)
    register_negative_diagonal(module)
    module.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(module.weight, plain.weight)


def test_a_chain_refuses_another_dtype():
    module = nn.Linear(3, 3)
    parametrizations.weight_norm(module)
    register_negative_diagonal(module)
    with pytest.raises(ValueError, match=r"weight: expected a tensor of torch\.float32"):
        module.weight = -torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_what_a_chain_leaves_behind_can_be_trained(context):
    module = nn.Linear(3, 3)
    parametrizations.weight_norm(module)
    register_negative_diagonal(module)
    with context():
        remove_negative_diagonal(module)
    assert isinstance(module.weight, nn.Parameter)
    module(torch.ones(1, 3)).sum().backward()
    assert module.weight.grad is not None


def test_an_assignment_that_stops_in_between_changes_nothing(monkeypatch):
    module = nn.Linear(3, 3)
    parametrizations.weight_norm(module)
    register_negative_diagonal(module)
    before, real, calls = module.weight.clone(), Tensor.copy_, []

    def stops(self: Tensor, *args: object) -> Tensor:
        if self.requires_grad:
            calls.append(self)
        if len(calls) == 2:
            calls.append(None)
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", stops)
        with pytest.raises(KeyboardInterrupt):
            module.weight = -2 * torch.eye(3) - 1
    torch.testing.assert_close(module.weight, before)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_cast_to_complex_numbers_is_refused(dtype):
    layer = register_negative_diagonal(nn.Linear(3, 3))
    before = layer.weight.clone()
    with pytest.raises(TypeError, match=r"weight: expected a cast to .* got torch.complex"):
        layer.to(dtype)
    assert torch.equal(layer.weight, before)
    assert layer.double().half().weight.dtype == torch.float16


@pytest.mark.parametrize("block", [parametrize.cached, torch.no_grad])
def test_a_recurrent_layer_computes_nothing_with_a_value_that_was_refused(block):
    layer = nn.GRU(3, 3)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(-0.5)
    register_negative_diagonal(layer, "weight_hh_l0", infeasible="error", cache_in_eval=True)
    x = torch.ones(2, 1, 3)
    with torch.no_grad(), block():
        expected = layer.eval()(x)[0]
        for bad in (5 * torch.eye(3).repeat(3, 1), torch.full((9, 3), torch.nan)):
            with pytest.raises(ValueError, match=r"weight_hh_l0: expected"):
                layer.weight_hh_l0 = bad
            assert torch.equal(layer(x)[0], expected)


def test_freezing_within_a_cached_block_is_noticed():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    with parametrize.cached():
        assert layer.weight.requires_grad
        layer.requires_grad_(False)
        assert not layer.weight.requires_grad


def test_a_parametrization_that_is_added_within_a_cached_block_is_noticed():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    with parametrize.cached():
        weight = layer.weight
        parametrize.register_parametrization(layer, "weight", Half())
        assert torch.equal(layer.weight, weight / 2)


def test_what_a_profiler_leaves_on_the_list_is_no_original():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    layer.parametrizations.weight.register_buffer("total_ops", torch.zeros(1))
    layer.weight = -torch.eye(3)
    assert torch.equal(layer.weight.diagonal(), -torch.ones(3))
    init_(layer, "weight", nn.init.constant_, -2.0)
    layer.reset_parameters()
    assert_negative(layer.weight.diagonal())


def test_a_module_that_writes_its_weight_by_itself_loads_its_own_checkpoint():
    class Writes(nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            for name in ("weight", "bias"):
                tensor = getattr(self, name)
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

    layer = register_negative_diagonal(Writes(3, 3), map="exp")
    other = register_negative_diagonal(Writes(3, 3), map="exp")
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.weight, layer.weight)


def test_any_name_of_a_module_will_do():
    layer = nn.Linear(3, 3)
    register_negative_diagonal(nn.Sequential(layer, nn.ReLU(), layer), "2.weight")
    assert_negative(layer.weight.diagonal())


def test_a_signature_takes_what_the_function_takes():
    given = {"map": "softplus", "beta": 10.0, "margin": 0.5}
    inspect.signature(register_negative_diagonal).bind(nn.Linear(2, 2), **given)
    mock.create_autospec(register_negative_diagonal)(nn.Linear(2, 2), **given)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_a_stack_of_matrices_must_say_where_they_are(make):
    layer = make(3, 4)
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected blocks, as \d matrices"):
        register_negative_diagonal(layer, "weight_ih_l0")
    with pytest.raises(ValueError, match=r"in_proj_weight: expected blocks, as 3 matrices"):
        register_negative_diagonal(nn.MultiheadAttention(4, 2), "in_proj_weight")
    register_negative_diagonal(layer, "weight_ih_l0", dims=(0, 1))


def test_tensors_that_share_a_part_of_their_memory_are_refused():
    memory, module = torch.randn(24), nn.Module()
    module.one = nn.Parameter(memory[:16].view(4, 4))
    module.other = nn.Parameter(memory[8:].view(4, 4))
    with pytest.raises(ValueError, match=r"one: expected a tensor of its own, got one tied to oth"):
        register_negative_diagonal(module, "one")
    module.other = nn.Parameter(memory[16:].view(4, 2))
    register_negative_diagonal(module, "one")


def test_columns_of_one_memory_are_tensors_of_their_own():
    memory, module = torch.randn(4, 8), nn.Module()
    module.left, module.right = nn.Parameter(memory[:, :4]), nn.Parameter(memory[:, 4:])
    right = module.right.detach().clone()
    register_negative_diagonal(module, "left")
    assert torch.equal(module.right, right)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_scripting_is_refused_however_it_was_registered():
    layer = linear(-1.0)
    parametrize.register_parametrization(layer, "weight", NegExpDiagonal())
    with pytest.raises(TypeError, match=r"expected a module without a negative diagonal"):
        torch.jit.script(layer)


@pytest.fixture(params=[False, True], ids=["data", "swap"])
def swap(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which PyTorch gives a parameter other data."""
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def bare(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", ClampDiagonal())


PLAIN = linear(-1.0).state_dict()
IN_INFERENCE_MODE: dict[str, Callable[[nn.Module], object]] = {
    "registered": lambda layer: register_negative_diagonal(remove_negative_diagonal(layer)),
    "registered bare": lambda layer: bare(remove_negative_diagonal(layer)),
    "removed": remove_negative_diagonal,
    "assigned": lambda layer: setattr(layer, "weight", -torch.eye(3)),
    "initialised": lambda layer: init_(layer, "weight", nn.init.ones_),
    "reset": lambda layer: layer.reset_parameters(),
    "loaded": lambda layer: layer.load_state_dict(PLAIN),
    "loaded by assignment": lambda layer: layer.load_state_dict(PLAIN, assign=True),
}


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("how", IN_INFERENCE_MODE)
def test_what_inference_mode_has_done_can_be_trained(how):
    layer = register_negative_diagonal(linear(-1.0))
    with torch.inference_mode():
        IN_INFERENCE_MODE[how](layer)
    assert not any(tensor.is_inference() for tensor in layer.parameters())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().neg().backward()
        optimizer.step()


def test_what_a_cast_in_inference_mode_leaves_is_projected():
    layer = register_negative_diagonal(linear(-1.0))
    with torch.inference_mode():
        layer.double()
    layer(torch.ones(1, 3, dtype=torch.float64)).sum().neg().backward()
    torch.optim.SGD(layer.parameters(), lr=10.0).step()
    assert_negative(layer.parametrizations.weight.original.diagonal())


def test_a_recurrent_layer_refuses_a_cast_before_anything_changes():
    layer = register_negative_diagonal(nn.GRU(3, 3), "weight_hh_l0")
    x = torch.ones(2, 1, 3)
    expected = layer(x)[0]
    with pytest.raises(TypeError, match=r"weight_hh_l0: expected a cast to"):
        layer._apply(lambda tensor: tensor.to(torch.complex64))
    assert torch.equal(layer(x)[0], expected)


def test_a_transposed_weight_registered_in_inference_mode_can_be_trained():
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.randn(3, 4).T)
    with torch.inference_mode():
        register_negative_diagonal(layer)
    assert layer.parametrizations.weight.original.stride() == (1, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert_negative(layer.weight.diagonal())
