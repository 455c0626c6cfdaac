"""A registered model that fully_shard manages: its training, and the orders that it refuses."""

import contextlib

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal, remove_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    MAPS,
    assert_trained_alike,
    make,
    registered,
    shard,
    sharded,
    train,
    weights,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@pytest.mark.parametrize("map", MAPS)
@on(2)
def test_trains_as_one_process(map: str) -> None:
    alone, model = registered(map), sharded(map=map)
    train(alone, split=False)
    train(model, split=True)
    assert isinstance(model[0].parametrizations.weight.original, DTensor)
    assert_trained_alike(model, alone)


@pytest.mark.parametrize("map", MAPS)
@on(2)
def test_trains_in_mixed_precision(map: str) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    seen = []
    model = sharded(map=map, mp_policy=policy)
    model[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    before = train(model, split=True, steps=1)
    after = train(model, split=True, steps=7)
    assert len(seen) == 8
    assert all(w.dtype == torch.bfloat16 and w.detach().diagonal().max() < 0 for w in seen)
    assert after < before
    assert all(w.diagonal().max() < 0 for w in weights(model))


@pytest.mark.parametrize("cached", [contextlib.nullcontext, parametrize.cached])
@on(2)
def test_is_never_cached(cached: type[contextlib.AbstractContextManager]) -> None:
    """Gathered tensors lie in the same place, under the same version, with other values."""
    model = register_negative_diagonal(make(256), "*.weight", cache_in_eval=True).eval()
    shard(model)
    x, seen = torch.randn(2, 256), []
    with torch.no_grad(), cached():
        for _step in range(6):
            assert isinstance(model[2].weight, DTensor)
            seen.append(model(x))
            model[2].parametrizations.weight.original.sub_(0.25)
    assert not any(map(torch.equal, seen, seen[1:]))


@on(2)
def test_starts_from_meta() -> None:
    with torch.device("meta"):
        model = registered()
    shard(model)
    model.to_empty(device="cpu")
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    train(model, split=True)
    assert all(w.diagonal().max() < 0 for w in weights(model))


@on(2)
def test_a_later_registration_is_refused() -> None:
    model = make()
    fully_shard(model)
    classes, state = [type(m) for m in model.modules()], list(model.state_dict())
    for module, name in ((model, "*.weight"), (model[0], "weight")):
        expected = "weight: expected a module that is not sharded yet.*-> fully_shard"
        with pytest.raises(ValueError, match=expected):
            register_negative_diagonal(module, name)
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == state
    train(model, split=True, steps=1)


@on(2)
def test_removal_is_refused() -> None:
    model = sharded()
    for module, name in ((model, "*.weight"), (model[2], "weight")):
        expected = "weight: expected a module that is not sharded, .*plain_state_dict"
        with pytest.raises(ValueError, match=expected):
            remove_negative_diagonal(module, name)
    train(model, split=True, steps=1)
