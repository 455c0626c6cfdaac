"""A model that is cut for tensor parallelism first and registered then."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.utils import parametrize

from negdiag_param import (
    NegExpDiagonal,
    init_,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    EVEN,
    MAPS,
    PLAN,
    N,
    assert_same_diagonals,
    assert_same_weights,
    assert_trained_alike,
    make,
    registered,
    train,
    weights,
    whole,
    world,
)
from tests.support.versions import COMPILED_SHARDS, COPIED_SHARDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


def parallel(map: str = "exp") -> nn.Sequential:
    model = parallelize_module(make(EVEN), world(), PLAN)
    return register_negative_diagonal(model, "*.weight", map=map)


@pytest.mark.parametrize("map", MAPS)
@on(2)
def test_trains_as_one_process(map: str) -> None:
    alone, model = registered(map, EVEN), parallel(map=map)
    assert_same_weights(model, alone)
    train(alone, split=False)
    train(model, split=False)
    assert_trained_alike(model, alone)


@on(2)
def test_takes_the_bare_class() -> None:
    alone, model = make(EVEN), parallelize_module(make(EVEN), world(), PLAN)
    for m in (alone, model):
        for layer in (m[0], m[2]):
            diagonal = NegExpDiagonal(infeasible="reflect")
            parametrize.register_parametrization(layer, "weight", diagonal)
        train(m, split=False)
    assert_trained_alike(model, alone)


@COMPILED_SHARDS
@on(2)
def test_compiles_in_one_graph() -> None:
    alone, model = registered(n=EVEN), parallel()
    train(alone, split=False)
    train(torch.compile(model, fullgraph=True, backend="aot_eager"), split=False)
    assert_trained_alike(model, alone)


@pytest.mark.parametrize("map", ["clamp", "exp"])
@on(2)
def test_is_cast_and_removed(map: str) -> None:
    """Both swap tensors in place, which PyTorch refuses where a weak reference is left to one."""
    model = parallel(map)
    train(model, split=False, steps=2)
    parameter = model[0].parametrizations.weight.original
    model.double()
    values = weights(model)
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    assert model[0].weight is parameter
    assert parameter.dtype == torch.float64
    for ours, theirs in zip(weights(model), values, strict=True):
        assert ours.equal(theirs)
    train(model.float(), split=False, steps=2)


@on(2)
def test_is_assigned_initialised_and_monitored() -> None:
    alone, model = registered(n=EVEN), parallel()
    for m in (alone, model):
        torch.manual_seed(4)
        init_(m, "*.weight", nn.init.xavier_normal_)
        m[0].weight = 2 * whole(m[2].weight)
    assert_same_weights(model, alone)
    assert_same_diagonals(model, alone)


@COPIED_SHARDS
@on(2)
def test_is_not_cached_nor_shared_with_copies() -> None:
    model, eye = parallel(), torch.eye(EVEN)
    with parametrize.cached(), torch.no_grad():
        assert not whole(model[0].weight).equal(-eye)
        model[0].weight = -eye
        assert whole(model[0].weight).equal(-eye)
    replica = copy.deepcopy(model)
    replica[0].weight = -3 * eye
    assert whole(model[0].weight).equal(-eye)


ORDER = "expected a Linear without a negative diagonal .*parallelize_module -> register"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "style",
    [ColwiseParallel(), SequenceParallel(), RowwiseParallel()],
    ids=["columns", "sequence", "rows"],
)
@on(2)
def test_a_registered_layer_is_not_parallelized(style: ParallelStyle, bias: bool) -> None:
    layer = register_negative_diagonal(nn.Linear(N, N, bias=bias))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(ValueError, match=ORDER):
        parallelize_module(layer, world(), style)
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(type(after[k]) is Tensor and after[k].equal(before[k]) for k in before)
    layer(torch.randn(2, N)).sum().backward()


@on(2)
def test_a_registered_layer_is_not_distributed() -> None:
    with pytest.raises(ValueError, match="without a negative diagonal"):
        distribute_module(register_negative_diagonal(nn.Linear(N, N)), world())
