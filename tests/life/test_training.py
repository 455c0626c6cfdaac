"""Training: the diagonal moves and stays negative, whatever trains it.

Under the map "clamp", training is that of a plain layer which is clamped after every step.
"""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import ClampDiagonal, register_negative_diagonal, remove_negative_diagonal
from tests.support.asserts import (
    assert_negative,
    assert_same_bits,
    baked,
    diagonal_of,
    original_of,
    push_up,
    registered,
    stock_with,
    value_of,
    weight_of,
)
from tests.support.modules import Half
from tests.support.optimizers import OPTIMIZERS, Make
from tests.support.tables import (
    BUILT_IN,
    DTYPES,
    LAYERS,
    Layer,
    every_dtype,
    every_layer_once_every_map_somewhere,
    every_map,
    grouped,
)

LINEAR = LAYERS["linear"]


@every_dtype
@every_layer_once_every_map_somewhere(somewhere=("linear",))
def test_an_optimizer_made_before_trains_the_layer_and_it_stays_negative(layer, map, dtype):
    torch.manual_seed(0)
    module = layer.make().to(dtype)
    kind = torch.optim.AdamW if dtype.itemsize > 2 else torch.optim.SGD  # which has no eps
    optimizer = kind(list(module.parameters()), lr=0.05)
    register_negative_diagonal(module, layer.tensor_name, map=map, **layer.options)
    before = value_of(layer, module)
    for _ in range(3):
        optimizer.zero_grad()
        loss = layer.run(module).float().square().mean()
        # Toward a positive diagonal, which it must not reach.
        (loss + (weight_of(layer, module).float() - 1).square().sum()).backward()
        optimizer.step()
        assert_negative(diagonal_of(layer, module))
    if isinstance(original_of(layer, module), nn.Parameter):
        moved = layer.diagonal(value_of(layer, module)) != layer.diagonal(before)
        assert moved.all() if dtype.itemsize > 2 else moved.any()


# Where decay alone takes a diagonal. Beyond the boundary, sign_flip reads zero as its mirror image.
RESTS = {
    "clamp": lambda margin: -margin,
    "exp": lambda margin: -margin - 1.0,
    "softplus": lambda margin: -margin - math.log(2.0),
    "softplus, beta=10": lambda margin: -margin - math.log(2.0) / 10,
    "square": lambda margin: -margin,
    "sign_flip": lambda margin: -2.0 * margin,
}


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("case", RESTS)
def test_weight_decay_pulls_to_the_fixed_point_of_the_map(case, margin):
    torch.manual_seed(0)
    kind, _, beta = case.partition(", beta=")
    options = {"beta": float(beta)} if beta else {}
    layer = register_negative_diagonal(nn.Linear(4, 4), map=kind, margin=margin, **options)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        (0.0 * layer.weight).sum().backward()
        optimizer.step()
    diagonal = layer.weight.diagonal()
    expected = torch.full((4,), RESTS[case](margin))
    torch.testing.assert_close(diagonal, expected, rtol=1e-5, atol=1e-6)
    assert_negative(diagonal, margin)


@every_map
def test_autocast_leaves_the_constraint_alone(map):
    layer = register_negative_diagonal(nn.Linear(3, 3), map=map)
    with torch.autocast("cpu", torch.bfloat16):
        assert_negative(layer.weight.diagonal())
        assert layer.weight.dtype == torch.float32
        layer(torch.randn(2, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_attention_uses_the_mapped_weights_on_its_fast_path_too(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).train(training)
    register_negative_diagonal(layer, "linear?.weight")
    register_negative_diagonal(layer, "self_attn.in_proj_weight", blocks=3)
    register_negative_diagonal(layer, "self_attn.out_proj.weight")
    x = torch.randn(2, 5, 4)
    push_up(layer)
    layer(x).square().sum().backward()
    attention = layer.self_attn
    assert_negative(grouped(3)(attention.in_proj_weight))
    # The bias of the keys shifts all scores alike, and so do some of their weights.
    assert grouped(3)(attention.parametrizations.in_proj_weight.original.grad)[[0, 2]].all()
    assert attention.out_proj.parametrizations.weight.original.grad.diagonal().all()
    stock = baked(layer)
    torch.testing.assert_close(layer(x), stock(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), stock(x))
        layer.linear1.parametrizations.weight.original.diagonal().sub_(1)
        assert not layer(x).allclose(stock(x))


STEPS = 12


def bound(margin: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is at most ``-margin``, below zero and normal."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps if dtype == torch.float16 else info.tiny
    rounded = torch.tensor(-max(margin, smallest), dtype=torch.float64).to(dtype)
    if rounded.item() > -margin:
        rounded = torch.nextafter(rounded, torch.tensor(-torch.inf, dtype=dtype))
    return rounded.item()


def trained(
    layer: Layer, module: nn.Module, make: Make, after_step: Callable[[], object] = lambda: None
) -> Iterator[tuple[Tensor, list[Any]]]:
    """Pushes the diagonal upwards, then downwards. The weight and the states after every step."""
    parameters = {
        name.removeprefix("parametrizations.").removesuffix(".original"): parameter
        for name, parameter in module.named_parameters()
    }
    is_muon = make.func is getattr(torch.optim, "Muon", None)  # which takes matrices only
    chosen = [parameters[name] for name in sorted(parameters)]
    chosen = [p for p in chosen if p.ndim == 2 or not is_muon]
    optimizer = make(chosen)
    for step in range(STEPS):
        optimizer.zero_grad()
        weight = getattr(module, layer.tensor_name)
        force = -3.0 if step < STEPS // 2 else 3.0
        loss = (
            1e-2 * layer.run(module).float().square().mean() + force * layer.diagonal(weight).sum()
        )
        loss.backward()
        optimizer.step()
        after_step()
        yield value_of(layer, module), [list(optimizer.state[p].values()) for p in chosen]


def clamping(layer: Layer, module: nn.Module, margin: float) -> Callable[[], None]:
    """What people do by hand, to a layer that is not registered."""

    def clamp() -> None:
        with torch.no_grad():
            weight = getattr(module, layer.tensor_name)
            layer.diagonal(weight).clamp_(max=bound(margin, weight.dtype))

    return clamp


def assert_trains_as_clamping_does(
    layer: Layer, module: nn.Module, make: Make, margin: float = 0.0
) -> None:
    by_hand = stock_with(layer, module).to(original_of(layer, module).dtype)
    ours = trained(layer, module, make)
    plain = trained(layer, by_hand, make, clamping(layer, by_hand, margin))
    reached = False
    for (weight, state), (expected, expected_state) in zip(ours, plain, strict=True):
        assert_same_bits(weight, expected)
        assert_same_bits(original_of(layer, module), expected)
        torch.testing.assert_close(state, expected_state, rtol=0, atol=0)
        reached |= bool((layer.diagonal(expected) == bound(margin, expected.dtype)).any())
    assert reached, "the boundary was not met"


def in_dtype(dtype: torch.dtype) -> Layer:
    return replace(LINEAR, make=lambda: nn.Linear(4, 4, dtype=dtype))


MOMENTUM = OPTIMIZERS["momentum"]
# Every optimizer and dtype with and without a margin, and every layer.
CASES: dict[str, tuple[Layer, Make, float]] = {
    **{
        f"{name}, {margin}": (layer, make, margin)
        for margin in (0.0, 0.1)
        for name, layer, make in (
            *((name, LINEAR, make) for name, make in OPTIMIZERS.items()),
            *((str(dtype), in_dtype(dtype), MOMENTUM) for dtype in DTYPES),
        )
    },
    **{name: (LAYERS[name], MOMENTUM, 0.1) for name in LAYERS if name != "raw_buffer"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_trains_as_one_clamped_by_hand(case):
    layer, make, margin = CASES[case]
    assert_trains_as_clamping_does(layer, registered(layer, margin=margin), make, margin)


def through_parametrize(layer: Layer) -> nn.Module:
    module = remove_negative_diagonal(registered(layer))
    parametrize.register_parametrization(module, "weight", ClampDiagonal())
    return module


def loaded_by_assignment(layer: Layer) -> nn.Module:
    module, other = registered(layer), registered(layer)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()  # after which the originals are known
    module.load_state_dict(other.state_dict(), assign=True)
    return module


def cast_to_another_parameter(layer: Layer) -> nn.Module:
    module = registered(layer)
    overwrite = torch.__future__.set_overwrite_module_params_on_conversion
    overwrite(True)
    try:
        return module.double().float()
    finally:
        overwrite(False)


ROUTES: dict[str, Callable[[Layer], nn.Module]] = {
    "torch.nn.utils.parametrize": through_parametrize,
    "deepcopy": lambda layer: copy.deepcopy(registered(layer)),
    "deepcopy, parametrize": lambda layer: copy.deepcopy(through_parametrize(layer)),
    "pickle": lambda layer: pickle.loads(pickle.dumps(registered(layer))),
    "loaded by assignment": loaded_by_assignment,
    "cast to another parameter": cast_to_another_parameter,
    # Where another parametrization follows; its own inverse is exact.
    "in a chain": lambda layer: parametrize.register_parametrization(
        registered(layer), "weight", nn.Identity()
    ),
}


@pytest.mark.parametrize("route", ROUTES)
def test_however_the_module_came_about_it_trains_as_clamped_by_hand(route):
    assert_trains_as_clamping_does(LINEAR, ROUTES[route](LINEAR), MOMENTUM)


def test_one_parametrization_may_serve_two_layers():
    shared, modules = ClampDiagonal(), [through_parametrize(LINEAR) for _ in range(2)]
    for module in modules:
        parametrize.remove_parametrizations(module, "weight")
        parametrize.register_parametrization(module, "weight", shared)
    for module in modules:
        assert_trains_as_clamping_does(LINEAR, module, MOMENTUM)


def beyond(module: nn.Module) -> nn.Parameter:
    """The original, after its diagonal was set beyond the boundary."""
    original = original_of(LINEAR, module)
    with torch.no_grad():
        original.diagonal().fill_(0.5)
    return original


def stepped(original: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step has set the original to the boundary."""
    original.grad = torch.zeros_like(original)
    optimizer.step()
    return original.detach().diagonal().eq(bound(0.0, original.dtype)).all().item()


def test_only_originals_of_the_optimizer_that_stepped_are_projected():
    modules = [registered(LINEAR) for _ in range(2)]
    one, other = map(beyond, modules)
    assert stepped(one, torch.optim.SGD([one]))
    assert other.diagonal().eq(0.5).all()
    assert stepped(other, torch.optim.SGD([one, other]))


def behind_another() -> nn.Module:
    module = parametrize.register_parametrization(nn.Linear(4, 4), "weight", Half())
    return register_negative_diagonal(module)


OTHERS = {name: partial(registered, LINEAR, name) for name in BUILT_IN if name != "clamp"}


@pytest.mark.parametrize("case", [*OTHERS, "behind another parametrization"])
def test_an_original_that_is_not_the_weight_is_not_projected(case):
    module = OTHERS.get(case, behind_another)()
    original = beyond(module)
    assert not stepped(original, torch.optim.SGD([original]))
    assert original.diagonal().eq(0.5).all()
    assert_negative(module.weight.diagonal())


REMOVALS = (remove_negative_diagonal, parametrize.remove_parametrizations)


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("register", [through_parametrize, registered])
def test_after_removal_the_weight_is_free(register, remove):
    module = register(LINEAR)
    kept = module.parametrizations.weight[0]  # alive, but of no tensor
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert stepped(beyond(module), optimizer)
    remove(module, "weight")
    with torch.no_grad():
        module.weight.diagonal().fill_(0.5)
    assert not stepped(module.weight, optimizer)
    assert module.weight.diagonal().eq(0.5).all()
    assert isinstance(kept, ClampDiagonal)


def test_a_line_search_sees_feasible_weights_only():
    module = registered(LINEAR)
    optimizer = torch.optim.LBFGS(module.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        assert_negative(module.weight.diagonal())
        loss = (module.weight - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert module.parametrizations.weight.original.diagonal().eq(bound(0.0, torch.float32)).all()


def test_an_optimizer_for_each_parameter_does_not_cost_the_square(monkeypatch):
    from negdiag_param._parametrization import steps

    looked = 0

    def counted(module: nn.Module) -> dict[str, nn.Parameter | None]:
        nonlocal looked
        looked += 1
        return module._parameters

    monkeypatch.setattr(steps, "own_parameters", counted)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    register_negative_diagonal(model, "*.weight")
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()]
    for _ in range(5):
        model(torch.ones(1, 2)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert looked <= 5 * 4 * len(optimizers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.integration)]
)
def test_a_compiled_model_and_a_compiled_step_train_as_clamped_by_hand(backend):
    torch._dynamo.reset()
    module = registered(LINEAR)
    by_hand = stock_with(LINEAR, module)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (module, by_hand)]
    step = torch.compile(optimizers[0].step, backend=backend)
    clamp, original = clamping(LINEAR, by_hand, 0.0), original_of(LINEAR, module)
    for sign in (-1.0, -1.0, -1.0, 1.0, 1.0):
        for optimizer, call in zip(optimizers, (compiled, by_hand), strict=True):
            optimizer.zero_grad()
            (sign * call(torch.eye(4)).diagonal().sum()).backward()
        step()
        optimizers[1].step()
        clamp()
        torch.testing.assert_close(module.weight, by_hand.weight)
        assert original.diagonal().le(bound(0.0, torch.float32)).all()
