"""A registered module behaves as a bare one in the machinery of Python, PyTorch and others."""

import abc
import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from functools import partial
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
from tests.support.asserts import assert_negative, push_up, reflected
from tests.support.modules import Half, linear
from tests.support.tables import LAYERS, every_map


def bare(layer: nn.Module, map: type = ClampDiagonal) -> nn.Module:
    """Registered through PyTorch's door."""
    return parametrize.register_parametrization(layer, "weight", map(infeasible="reflect"))


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


# Classes: mixins, factories, copies, and look-ups of their own.


class Metaclass(type):
    pass


class WithMetaclass(metaclass=Metaclass):
    pass


Abstract = abc.ABCMeta("Abstract", (), {})


@pytest.mark.parametrize("mixin", [None, object, Abstract, WithMetaclass, nn.Identity])
def test_its_class_makes_modules_that_can_be_registered(mixin):
    cls = type(register_negative_diagonal(nn.Linear(3, 3)))
    cls = type(mixin)("Mixed", (cls, mixin), {}) if mixin else cls
    module = register_negative_diagonal(cls(3, 3))
    for each in (module, copy.deepcopy(module)):
        assert isinstance(each, mixin or nn.Linear)
        assert_negative(each.weight.diagonal())
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
    for other in (again, copy.deepcopy(again), pickled(again)):
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
@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_a_copy_is_made_as_the_class_makes_it(make, again):
    module = register_negative_diagonal(make(3))
    replica = again(module)
    assert type(replica) is type(module)
    assert hasattr(replica, "handle") == hasattr(module, "handle")
    assert torch.equal(replica.weight, module.weight)
    with torch.no_grad():
        replica.parametrizations.weight.original.sub_(1)
    assert not torch.equal(replica.weight, module.weight)


class Unpicklable(Half):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda: None


@pytest.mark.parametrize("spoil", [parametrizations.weight_norm, None])
def test_what_cannot_be_pickled_beside_it_is_named(spoil):
    layer = nn.Linear(3, 3)
    if spoil:
        spoil(layer)
    else:
        parametrize.register_parametrization(layer, "bias", Unpicklable())
    register_negative_diagonal(layer)
    with pytest.raises(RuntimeError, match=r"that can be pickled, got .*; save state_dict\(\)"):
        pickle.dumps(nn.Sequential(layer))
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


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


@pytest.mark.parametrize("method", ["__getattr__", "__getattribute__"])
@pytest.mark.parametrize("late", [False, True])
def test_a_look_up_of_attributes_of_its_own_is_asked(method, late):
    asked = []

    def ask(self: nn.Module, name: str) -> object:
        asked.append(name)
        return getattr(super(mixin, self), method)(name)

    mixin = type("Asks", (), {method: ask})
    cls = nn.Linear if late else type("Layer", (mixin, nn.Linear), {})
    layer = register_negative_diagonal(cls(3, 3))
    if late:
        layer.__class__ = type("Mixed", (mixin, type(layer)), {})
    for _ in range(3):
        asked.clear()
        assert_negative(layer.weight.diagonal())
        assert "parametrizations" in asked


@pytest.mark.parametrize("door", [register_negative_diagonal, bare])
def test_an_attribute_error_in_a_map_is_shown(door):
    class Broken(NegExpDiagonal):
        broken = False

        def map(self, x: Tensor) -> Tensor:
            return x.nonsense() if self.broken else -x.exp()

        def inverse(self, d: Tensor) -> Tensor:
            return (-d).log()

    layer = door(nn.Linear(3, 3), map=Broken)
    Broken.broken = True
    with pytest.raises(RuntimeError, match=r"weight: AttributeError: .*nonsense"):
        layer.weight  # noqa: B018


def test_parts_of_containers_of_parameters_train():
    tensors = {"a": -torch.eye(3), "b": -torch.eye(3)}
    listed, named = nn.ParameterList(tensors.values()), nn.ParameterDict(tensors)
    register_negative_diagonal(listed, "0")
    register_negative_diagonal(named, "a")
    for container, part in ((listed, listed[:1][0]), (named, named.copy()["a"])):
        part.sum().backward()
        assert next(container.parametrizations.parameters()).grad is not None
    assert listed[0:2][1] is listed[1]
    assert (named | {"c": 1})["c"] == 1


# Neighbours and chains: other parametrizations of the same module.


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


def half(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Half())


OTHERS = [half, *(getattr(parametrizations, f"{n}_norm") for n in ("weight", "spectral"))]
OTHERS.append(parametrizations.orthogonal)
every_other = pytest.mark.parametrize("other", OTHERS)


def chain(other: Callable = parametrizations.weight_norm, map: str = "clamp") -> nn.Linear:
    module = nn.Linear(3, 3)
    other(module)
    return register_negative_diagonal(module, map=map).eval()


@every_map
@pytest.mark.parametrize("other", [half, parametrizations.weight_norm])
def test_a_chain_keeps_the_value_and_has_a_life(other, map):
    module, target = nn.Linear(3, 3), chain(other, map)
    other(module)
    expected = reflected(LAYERS["linear"], module.weight)
    register_negative_diagonal(module, map=map)
    torch.testing.assert_close(module.weight, expected)
    module.weight = expected * 3
    torch.testing.assert_close(module.weight, expected * 3)
    push_up(module, steps=1)
    value = module.weight.detach().clone()
    assert not value.allclose(expected * 3)
    assert_negative(value.diagonal())
    for again in (copy.deepcopy, pickled) if other is half else (copy.deepcopy,):
        replica = again(module)
        torch.testing.assert_close(replica.weight, value)
        push_up(replica, steps=1)
        torch.testing.assert_close(module.weight, value)
    target.load_state_dict(module.state_dict())
    torch.testing.assert_close(target.weight, value)
    remove_negative_diagonal(module)
    assert not parametrize.is_parametrized(module)
    torch.testing.assert_close(module.weight, value)


@every_other
@pytest.mark.parametrize("assign", [False, True])
def test_a_chain_refuses_a_checkpoint_of_another_map_and_keeps_its_weight(other, assign):
    source, target = (nn.Sequential(chain(other, m), nn.Linear(3, 3)) for m in ("exp", "softplus"))
    before = target[0].weight.clone()
    with pytest.raises(RuntimeError, match=r"0\.weight.*expected a checkpoint of softplus"):
        target.load_state_dict(source.state_dict(), assign=assign)
    assert torch.equal(target[0].weight, before)
    assert torch.equal(target[1].weight, source[1].weight), "later layers are loaded as ever"


# Under spectral_norm, the vectors that are not in the checkpoint decide about the value.
@pytest.mark.parametrize("other", [half, parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_chain_loads_what_was_written_before_registration(other):
    module, plain = chain(other), linear(-1.0)
    with torch.no_grad():
        plain.weight.copy_(-torch.eye(3))  # which an orthogonal matrix can be
    module.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(module.weight, plain.weight)


def test_an_assignment_that_stops_in_between_changes_nothing(monkeypatch):
    module = chain()
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


# Caches, profilers, checkpoints, resets, names and signatures.


def test_what_changes_within_a_cached_block_is_noticed():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    with parametrize.cached():
        weight = layer.weight
        layer.requires_grad_(False)
        assert not layer.weight.requires_grad
        half(layer)
        assert torch.equal(layer.weight, weight / 2)


def test_what_a_profiler_leaves_on_the_list_is_no_original():
    layer = register_negative_diagonal(nn.Linear(3, 3))
    layer.parametrizations.weight.register_buffer("total_ops", torch.zeros(1))
    layer.weight = -torch.eye(3)
    assert torch.equal(layer.weight.diagonal(), -torch.ones(3))
    init_(layer, "weight", nn.init.constant_, -2.0)
    layer.reset_parameters()
    assert_negative(layer.weight.diagonal())
    layer.load_state_dict(linear(-1.0).state_dict(), strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_module_that_writes_its_weight_by_itself_loads_its_own_checkpoint(dtype):
    class Writes(nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            for name in ("weight", "bias"):
                tensor = getattr(self, name).to(dtype)
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

    layer, other = (register_negative_diagonal(Writes(3, 3), map="exp") for _ in range(2))
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.weight, layer.weight)


def test_a_reset_takes_and_returns_what_the_class_does():
    class Resets(nn.Linear):
        def reset_parameters(self, gain: float = 1.0) -> nn.Module:
            nn.init.constant_(self.weight, -gain)
            return self

    layer = register_negative_diagonal(Resets(3, 3))
    assert layer.reset_parameters(gain=2.0) is layer
    assert (layer.weight == -2).all()


@pytest.mark.parametrize("diagonal", [[-0.2] * 3, [-0.01 * i for i in range(1, 9)]])
@pytest.mark.parametrize("sign", [1, -1])
def test_registering_says_so_if_it_moves_what_was_negative_throughout(diagonal, sign):
    layer = nn.Linear(len(diagonal), len(diagonal))
    value = torch.diag(torch.tensor(diagonal))
    value[0, 0] *= sign  # as a default initialisation has positive entries, too
    layer.weight = nn.Parameter(value)
    found = pytest.warns(UserWarning, match=rf"weight: .*{len(diagonal)} set to -0\.501, as -\|d\|")
    with found if sign > 0 else mock.MagicMock():
        register_negative_diagonal(layer, margin=0.5)
    assert torch.allclose(layer.weight.diagonal(), torch.tensor(-0.501))
    register_negative_diagonal(linear(-0.2), margin=0.5, infeasible="reflect")


def test_a_fused_weight_is_warned_of_with_the_remedy():
    layer, norm = register_negative_diagonal(nn.Conv2d(3, 3, 1)).eval(), nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.fill_(-1.0)
    with pytest.warns(UserWarning, match=r"remove_negative_diagonal first"):
        nn.utils.fuse_conv_bn_eval(layer, norm)


def test_a_signature_takes_what_the_function_takes():
    given = {"map": "softplus", "beta": 10.0, "margin": 0.5}
    inspect.signature(register_negative_diagonal).bind(nn.Linear(2, 2), **given)
    mock.create_autospec(register_negative_diagonal)(nn.Linear(2, 2), **given)


# Inference mode.


@pytest.fixture(params=[False, True], ids=["data", "swap"])
def swap(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which PyTorch gives a parameter other data."""
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def negative() -> nn.Module:
    return register_negative_diagonal(linear(-1.0))


def transposed() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.randn(3, 4).T)
    return layer


def other_than_ours(other: Callable) -> nn.Module:
    layer = nn.Linear(3, 3)
    other(layer)
    return layer


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
DONE: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    **{how: (negative, act) for how, act in IN_INFERENCE_MODE.items()},
    "registered, transposed": (transposed, register_negative_diagonal),
    "removed from a chain": (chain, remove_negative_diagonal),
    **{
        f"registered after {other.__name__}": (
            partial(other_than_ours, other),
            register_negative_diagonal,
        )
        for other in OTHERS
    },
}


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize(("make", "act"), DONE.values(), ids=DONE)
def test_what_inference_mode_has_done_can_be_trained(make, act):
    layer = make()
    with torch.inference_mode():
        act(layer)
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
