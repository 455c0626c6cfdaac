"""Checkpoints from before registration, for after removal, and those that must be refused."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from negdiag_param import (
    NegExpDiagonal,
    init_,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.cases import DTYPES, MAPS


class Net(nn.Module):
    """Nested, with registered and other tensors, a buffer, and extra state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.BatchNorm1d(4))
        self.core = nn.LSTM(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


PATTERNS = ("first.weight", "body.0.weight", "core.weight_hh_l0")


def stock(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    net.seen = seed
    for name in PATTERNS:
        register_negative_diagonal(net, name, map="sign_flip")
        remove_negative_diagonal(net, name)
    return net


def registered(map="exp", seed: int = 1, **options) -> Net:
    net = stock(seed)
    for name in PATTERNS:
        register_negative_diagonal(net, name, map=map, **options)
    return net


def assert_same(found: nn.Module, expected: nn.Module, **tolerance) -> None:
    found, expected = plain_state_dict(found), plain_state_dict(expected)
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                found[name].to(value.dtype), value, **tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert found[name] == value


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("map", MAPS)
def test_a_plain_checkpoint_loads(map, assign):
    net = registered(MAPS[map])
    state = stock().state_dict()
    keys = list(state)
    result = net.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert list(state) == keys
    assert_same(net, stock())


@pytest.mark.parametrize("map", MAPS)
def test_the_plain_state_is_that_of_the_stock_model(map):
    net = registered(MAPS[map])
    plain, expected = plain_state_dict(net), stock().state_dict()
    assert list(plain) == list(expected)
    assert plain._metadata == expected._metadata
    other = stock(5)
    other.load_state_dict(plain, strict=True)
    assert_same(net, other)
    baked = copy.deepcopy(net)
    for name in PATTERNS:
        remove_negative_diagonal(baked, name)
    assert list(baked.state_dict()) == list(plain)


def test_the_plain_state_is_detached_and_of_its_own():
    net = registered()
    plain = plain_state_dict(net)
    assert not any(getattr(value, "requires_grad", False) for value in plain.values())
    before = net.first.weight.clone()
    plain["first.weight"].fill_(3.0)
    assert torch.equal(net.first.weight, before)


def test_the_plain_state_of_a_stock_model_is_its_state():
    net = stock()
    assert list(plain_state_dict(net)) == list(net.state_dict())


def test_the_plain_state_keeps_shared_modules_under_both_names():
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": layer, "b": layer})
    keys = list(model.state_dict())
    register_negative_diagonal(model, "a.weight")
    assert list(plain_state_dict(model)) == keys


def test_keys_may_be_mixed():
    net, source = registered(), registered(seed=3)
    state = source.state_dict()
    plain = plain_state_dict(source)
    for key in [k for k in state if "first" in k]:
        del state[key]
    state.update({k: v for k, v in plain.items() if k.startswith("first")})
    net.load_state_dict(state, strict=True)
    assert_same(net, source)


def test_registered_keys_win_over_plain_ones_that_are_unexpected_then():
    net, source = registered(), registered(seed=3)
    state = source.state_dict()
    state["first.weight"] = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.weight"):
        copy.deepcopy(net).load_state_dict(state, strict=True)
    result = net.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["first.weight"]
    assert_same(net, source)


@pytest.mark.parametrize("strict", [True, False])
def test_a_missing_weight_is_missing(strict):
    net = registered()
    before = net.first.weight.clone()
    state = stock().state_dict()
    del state["first.weight"]
    if strict:
        with pytest.raises(RuntimeError, match=r"Missing key.*first\.parametrizations"):
            net.load_state_dict(state)
    else:
        result = net.load_state_dict(state, strict=False)
        assert "first.parametrizations.weight.original" in result.missing_keys
    assert torch.equal(net.first.weight, before)


def test_a_checkpoint_without_the_mark_loads():
    net, source = registered(), registered(seed=3)
    state = {k: v for k, v in source.state_dict().items() if "0._extra_state" not in k}
    net.load_state_dict(state, strict=True)
    assert_same(net, source)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_of_another_float_dtype_loads(dtype):
    net = registered()
    net.load_state_dict({
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in stock().state_dict().items()
    })
    assert net.first.weight.dtype == torch.float32
    assert_same(net, stock(), rtol=2e-2, atol=1e-3)


def test_assigning_keeps_the_dtype_of_the_checkpoint():
    net = registered()
    net.load_state_dict(stock().double().state_dict(), assign=True)
    assert net.first.weight.dtype == torch.float64
    assert_same(net, stock(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("map", MAPS)
def test_a_model_on_meta_takes_a_checkpoint(map):
    with torch.device("meta"):
        net = Net()
    for name in PATTERNS:
        register_negative_diagonal(net, name, map=MAPS[map])
    assert net.first.weight.is_meta
    net.load_state_dict(stock().state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert_same(net, stock())


@pytest.mark.parametrize("plain", [True, False])
def test_safetensors(plain, tmp_path):
    def tensors(state):
        return {k: v for k, v in state.items() if k != "_extra_state"}

    net, source = registered(), registered(seed=3)
    state = plain_state_dict(source) if plain else source.state_dict()
    save_file(tensors(state), tmp_path / "state.safetensors")
    result = net.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=False)
    assert result.missing_keys == ["_extra_state"]
    assert not result.unexpected_keys
    net.seen = source.seen
    assert_same(net, source)


def positive() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, 3), "bias": torch.ones(3)}


def test_an_infeasible_checkpoint_follows_the_policy():
    expected = torch.ones(3, 3) - 2 * torch.eye(3)
    layer = register_negative_diagonal(nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="3 of 3 entries"):
        layer.load_state_dict(positive())
    assert torch.equal(layer.weight, expected)
    silent = register_negative_diagonal(nn.Linear(3, 3), infeasible="reflect")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent.load_state_dict(positive())
    assert torch.equal(silent.weight, expected)


def test_an_infeasible_checkpoint_can_be_an_error():
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
    register_negative_diagonal(layer, infeasible="error")
    before = layer.weight.clone()
    with pytest.raises(RuntimeError, match=r"weight.*3 of 3 entries"):
        layer.load_state_dict(positive())
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(bad, assign):
    net = registered()
    before = plain_state_dict(net)
    state = stock().state_dict()
    state["body.0.weight"][0, 0, 1] = bad
    with pytest.raises(RuntimeError, match=r"body\.0\.weight.*NaN or infinite"):
        net.load_state_dict(state, assign=assign)
    assert torch.equal(net.body[0].weight, before["body.0.weight"])
    assert isinstance(net.body[0].parametrizations.weight.original, nn.Parameter)
    net.body[0].weight.sum().backward()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ({"map": "exp"}, {"map": "softplus"}),
        ({"map": "sign_flip"}, {"map": "exp"}),
        ({"map": "exp", "margin": 0.5}, {"map": "exp"}),
        ({"map": MAPS["subclass"]}, {"map": MAPS["transform"]}),
    ],
)
def test_a_checkpoint_of_another_map_is_refused(theirs, mine, strict):
    def layer(options, value):
        layer = register_negative_diagonal(nn.Linear(3, 3), **options)
        return init_(layer, "weight", nn.init.constant_, value)

    source, target = layer(theirs, -2.0), layer(mine, -3.0)
    before = target.weight.clone()
    names = [module.parametrizations.weight[0].describe() for module in (target, source)]
    with pytest.raises(RuntimeError) as error:
        target.load_state_dict(source.state_dict(), strict=strict)
    assert all(name in str(error.value) for name in names)
    assert torch.equal(target.weight, before)
    target.weight.sum().backward()
    # What the plain state says holds under any map.
    target.load_state_dict(plain_state_dict(source))
    torch.testing.assert_close(target.weight, source.weight)


@pytest.mark.parametrize("strict", [False, True])
def test_another_size_is_refused_as_always(strict):
    layer = register_negative_diagonal(nn.Linear(3, 3))
    before = layer.weight.clone()
    with pytest.raises(RuntimeError, match=r"size mismatch.*weight"):
        layer.load_state_dict(nn.Linear(4, 4).state_dict(), strict=strict)
    assert torch.equal(layer.weight, before)


def test_nothing_stays_behind_after_removal():
    net = registered()
    for name in PATTERNS:
        remove_negative_diagonal(net, name)
    for module in net.modules():
        assert not module._load_state_dict_pre_hooks
    net.load_state_dict(stock().state_dict(), strict=True)
    net.load_state_dict(stock().state_dict(), strict=True, assign=True)


def test_removing_one_of_two_leaves_the_other_loading():
    gru = nn.GRU(3, 3, 2)
    register_negative_diagonal(gru, "weight_hh*")
    remove_negative_diagonal(gru, "weight_hh_l0")
    state = nn.GRU(3, 3, 2).state_dict()
    with pytest.warns(UserWarning, match="weight_hh_l1"):
        gru.load_state_dict(state)
    assert torch.equal(gru.weight_hh_l0, state["weight_hh_l0"])
    diagonal = gru.weight_hh_l1.unflatten(0, (3, 3)).diagonal(dim1=1, dim2=2)
    assert (diagonal < 0).all()


def test_a_copy_loads_into_itself():
    net = registered()
    replica = copy.deepcopy(net)
    before = plain_state_dict(net)
    replica.load_state_dict(stock().state_dict())
    assert_same(replica, stock())
    assert all(
        torch.equal(v, before[k]) for k, v in plain_state_dict(net).items() if torch.is_tensor(v)
    )


def test_a_bare_class_marks_its_checkpoints_too():
    def bare(**options):
        layer = nn.Linear(3, 3)
        parametrization = NegExpDiagonal(infeasible="reflect", **options)
        nn.utils.parametrize.register_parametrization(layer, "weight", parametrization)
        return layer

    with pytest.raises(ValueError, match=r"margin=0\.5.*margin=0\.0"):
        bare(margin=0.5).load_state_dict(bare().state_dict())
    helped = register_negative_diagonal(nn.Linear(3, 3))
    source = bare()
    helped.load_state_dict(source.state_dict())
    assert torch.equal(helped.weight, source.weight)
