"""Checkpoints: what wrote one is told apart always; those of stock models are read and written.

What wrote it survives what people do to state dicts.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import transforms as T
from torch.nn.utils import parametrize

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    init_,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import assert_same_bits, assert_same_state
from tests.support.modules import LearnedScale, OwnSquareDiagonal, registered_net, stock_net
from tests.support.tables import MAPS, every_dtype, every_map, rows

MARK = "parametrizations.weight.0._extra_state"


def negated(*parts):
    return T.ComposeTransform([*parts, T.AffineTransform(0.0, -1.0)])


class Scaled(NegativeDiagonal):
    """A user's map with an argument of its own."""

    def __init__(self, scale: float, **options: object) -> None:
        super().__init__(**options)
        self.scale = scale

    def map(self, x):
        return -(x / self.scale).exp()

    def inverse(self, d):
        return self.scale * (-d).log()


def powers(n):
    """Many transforms in one another, which print as a very long text."""
    inner = [T.AffineTransform(0.0, 1.0) for _ in range(30)]
    return negated(T.ComposeTransform(inner), T.ExpTransform(), T.PowerTransform(n))


def scaled(*size: float) -> T.Transform:
    return negated(T.ExpTransform(), T.AffineTransform(0.0, torch.tensor(size)))


PAIRS = {
    "scale": [negated(T.SoftplusTransform(), T.AffineTransform(0.0, by)) for by in (1.0, 2.0)],
    "shift": [negated(T.AffineTransform(by, 1.0), T.ExpTransform()) for by in (0.0, 0.5)],
    "power": [negated(T.ExpTransform(), T.PowerTransform(by)) for by in (1.0, 1.01)],
    "tensors": (scaled(1.0), scaled(3.0)),
    "entry by entry": (scaled(1.0, 2.0, 3.0), scaled(3.0, 2.0, 1.0)),
    "long": (powers(1.0), powers(2.0)),
    "argument": (Scaled(1.0), Scaled(2.0)),
    "margin": (NegExpDiagonal(0.1), NegExpDiagonal(0.2)),
    "class": (OwnSquareDiagonal(), Scaled(1.0)),
    "name": [type(name, (OwnSquareDiagonal,), {})() for name in ("NégÄ", "NégÖ")],
}


def layer(map, **options):
    module = register_negative_diagonal(nn.Linear(3, 3), map=map, **options)
    return init_(module, "weight", nn.init.constant_, -1.5)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_the_same_map_is_taken_and_another_refused(one, other):
    for mine, theirs in ((one, other), (other, one)):
        target, source = layer(mine), init_(layer(theirs), "weight", nn.init.constant_, -2.5)
        before = target.weight.clone()
        with pytest.raises(RuntimeError, match=r"weight: expected a checkpoint of .* found one of"):
            target.load_state_dict(source.state_dict())
        assert torch.equal(target.weight, before)
        target.weight.sum().backward()
        # What the plain state says holds under any map.
        target.load_state_dict(plain_state_dict(source))
        torch.testing.assert_close(target.weight, source.weight)
        alike = layer(copy.deepcopy(theirs))
        alike.load_state_dict(source.state_dict())
        assert torch.equal(alike.weight, source.weight)


DIMS = {
    nn.Linear: [[None, (0, 1), (-2, -1)], [()]],
    nn.Bilinear: [[(0, 1), (-3, -2)], [(1, 2), (-2, -1)], [(0, 2), (-3, -1)], [()]],
}


@pytest.mark.parametrize("cls", DIMS)
def test_dims_are_the_same_however_they_are_counted_and_others_are_refused(cls):
    def made(dims: tuple[int, ...] | None) -> nn.Module:
        return register_negative_diagonal(cls(*(3,) * (2 + (cls is nn.Bilinear))), dims=dims)

    for group, other in product(DIMS[cls], repeat=2):
        for mine, theirs in product(group, other):
            refused = pytest.raises(RuntimeError, match="expected a checkpoint of clamp")
            with nullcontext() if group is other else refused:
                made(mine).load_state_dict(made(theirs).state_dict())


def test_a_bare_class_marks_its_checkpoints_too():
    bare, helped = nn.Linear(3, 3), layer("exp")
    nn.utils.parametrize.register_parametrization(
        bare, "weight", NegExpDiagonal(infeasible="reflect")
    )
    helped.load_state_dict(bare.state_dict())
    assert torch.equal(helped.weight, bare.weight)


def test_what_a_map_has_learnt_is_no_part_of_it():
    source, target = layer(LearnedScale), layer(LearnedScale)
    with torch.no_grad():
        source.parametrizations.weight[0].scale.add_(1)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight, source.weight)
    assert list(plain_state_dict(source)) == ["weight", "bias"]


ARITHMETIC = {
    "mean of three": lambda v: (v + v + v) / 3,
    "moving average": lambda v: 0.9 * v + 0.1 * v,
    "float16": lambda v: v.half(),
    "bfloat16": lambda v: v.bfloat16(),
    "noise": lambda v: v + 0.5 * torch.randn_like(v),
    "on meta": lambda v: v.to("meta") if v.shape == (256,) else v,
}


@pytest.mark.parametrize("map", rows(MAPS, ("clamp", "transform")))
@pytest.mark.parametrize("change", ARITHMETIC.values(), ids=ARITHMETIC)
def test_a_mark_survives_arithmetic(change, map):
    torch.manual_seed(0)
    source = layer(map)
    assert all(value.norm().isfinite() for value in source.state_dict().values())
    state = {key: change(value) for key, value in source.state_dict().items()}
    layer(map).load_state_dict(state)
    other = register_negative_diagonal(nn.Linear(3, 3), map=map, margin=0.25)
    if not state[MARK].is_meta:
        with pytest.raises(RuntimeError, match=r"margin=0\.25"):
            other.load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
@every_map
def test_the_plain_state_is_written_and_read_as_that_of_the_stock_model(map, assign):
    net, state = registered_net(map), stock_net().state_dict()
    plain, other, keys = plain_state_dict(net), stock_net(5), list(state)
    assert list(plain) == keys == list(plain_state_dict(stock_net()))
    assert plain._metadata == state._metadata
    other.load_state_dict(plain, strict=True)
    assert_same_state(net, other)
    net.load_state_dict(state, strict=True, assign=assign)
    assert list(state) == keys
    assert_same_state(net, stock_net())


def test_the_plain_state_is_detached_and_of_its_own():
    net = registered_net()
    plain = plain_state_dict(net)
    assert not any(getattr(value, "requires_grad", False) for value in plain.values())
    before = net.first.weight.clone()
    plain["first.weight"].fill_(3.0)
    assert torch.equal(net.first.weight, before)


def test_the_plain_state_keeps_what_is_beside_ours_and_the_order_of_modules():
    layer = nn.Linear(3, 3)
    shared = nn.ModuleDict({"a": layer, "b": layer})
    neighbour = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_ih_l0")
    own = nn.Sequential(nn.Linear(3, 3))
    own.weight = nn.Parameter(torch.ones(3, 3))
    for model, name in ((shared, "a.weight"), (neighbour, "weight_hh_l0"), (own, "*weight")):
        keys = [*model.state_dict()]
        found = [*plain_state_dict(register_negative_diagonal(model, name))]
        assert found == keys or model is neighbour
        assert sorted(found) == sorted(keys)


def test_the_plain_state_knows_originals_that_a_wrapper_renames():
    def without_inner(module, state, prefix, metadata):
        for key in list(state):
            state[key.replace("inner.", "")] = state.pop(key)

    wrapper = nn.Module()
    wrapper.inner = register_negative_diagonal(nn.Linear(3, 3))
    wrapper.register_state_dict_post_hook(without_inner)
    assert sorted(plain_state_dict(wrapper)) == ["bias", "weight"]


@every_dtype
def test_a_checkpoint_of_another_float_dtype_loads(dtype):
    net, state = registered_net(), stock_net().to(dtype).state_dict()
    net.load_state_dict(state)
    assert net.first.weight.dtype == torch.float32
    assert_same_state(net, stock_net(), rtol=2e-2, atol=1e-3)
    loaded = net.first.parametrizations.weight.original.clone()
    net.first.weight = stock_net().first.weight.to(dtype).float()
    assert_same_bits(net.first.parametrizations.weight.original, loaded)
    net.load_state_dict(state, assign=True)
    assert net.first.weight.dtype == dtype
    assert_same_state(net.float(), stock_net(), rtol=2e-2, atol=1e-3)


def test_keys_may_be_mixed_and_registered_ones_win_over_plain_ones_that_are_unexpected_then():
    net, source = registered_net(), registered_net(seed=3)
    state, plain = source.state_dict(), plain_state_dict(source)
    mixed = {key: value for key, value in state.items() if "first" not in key}
    net.load_state_dict(mixed | {k: v for k, v in plain.items() if "first" in k}, strict=True)
    assert_same_state(net, source)
    net, state["first.weight"] = registered_net(), torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.weight"):
        copy.deepcopy(net).load_state_dict(state, strict=True)
    result = net.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["first.weight"]
    assert_same_state(net, source)


def test_a_missing_weight_is_missing():
    net, state = registered_net(), stock_net().state_dict()
    before = net.first.weight.clone()
    del state["first.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.parametrizations"):
        net.load_state_dict(state)
    result = net.load_state_dict(state, strict=False)
    assert "first.parametrizations.weight.original" in result.missing_keys
    assert torch.equal(net.first.weight, before)


def test_a_checkpoint_without_the_mark_loads():
    net, source = registered_net(), registered_net(seed=3)
    state = {k: v for k, v in source.state_dict().items() if "0._extra_state" not in k}
    with pytest.warns(UserWarning, match=r"expected a checkpoint that says which map.*NegExp"):
        net.load_state_dict(state, strict=True)
    assert_same_state(net, source)


def test_a_plain_key_after_a_tensor_with_two_parametrizations_is_read():
    rnn = register_negative_diagonal(nn.RNN(3, 3, num_layers=2), "weight_hh_l*")
    parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Identity())
    plain = 2 * rnn.weight_hh_l1.detach()
    state = {key: value for key, value in rnn.state_dict().items() if "weight_hh_l1" not in key}
    rnn.load_state_dict(state | {"weight_hh_l1": plain}, strict=True)
    torch.testing.assert_close(rnn.weight_hh_l1.detach(), plain)


@pytest.mark.parametrize("via", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_buffer_that_stays_out_of_checkpoints_stays_out_of_them(via: Callable):
    def made(persistent: bool) -> nn.Module:
        module = nn.Linear(3, 1)
        module.register_buffer("matrix", torch.randn(3, 3), persistent=persistent)
        return module

    found = via(register_negative_diagonal(made(False), "matrix", map="softplus"))
    assert list(found.state_dict()) == list(plain_state_dict(found)) == ["weight", "bias"]
    before = found.matrix.clone()
    for source in (copy.deepcopy(found), made(False)):
        found.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(found.matrix, before)
    remove_negative_diagonal(found, "matrix")
    assert list(found.state_dict()) == ["weight", "bias"]
    assert torch.equal(found.matrix, before)
    persistent = register_negative_diagonal(made(True), "matrix")
    assert "matrix" in plain_state_dict(persistent)
    assert "parametrizations.matrix.original" in persistent.state_dict()
