"""The sharded weight outside the forward pass: read, penalised, assigned, initialised."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from negdiag_param import init_, negative_diagonals
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    N,
    assert_same_weights,
    batch,
    registered,
    sharded,
    train,
    weights,
    whole,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@on(2)
def test_is_read_without_a_collective() -> None:
    alone, model = registered(), sharded()
    with CommDebugMode() as debug:
        weight = model[0].weight
    assert isinstance(weight, DTensor)
    assert not debug.get_comm_counts()
    assert whole(weight).equal(alone[0].weight)


@on(2)
def test_is_penalised() -> None:
    alone, model = registered(), sharded()
    for m in (alone, model):
        total = sum(d.square().sum() for _, d in negative_diagonals(m))
        total = total + gathered(m[2].weight).exp().sum()
        total.backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad.placements == ours.placements
            torch.testing.assert_close(whole(ours.grad), theirs.grad)
    train(model, split=True, steps=1)


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@on(2)
def test_is_assigned() -> None:
    model, value = sharded(), feasible()
    parameter = model[0].parametrizations.weight.original
    same = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    with CommDebugMode() as debug:
        model[0].weight = value
    assert not debug.get_comm_counts()
    with CommDebugMode() as debug:
        model[0].weight = same
    assert debug.get_total_counts() == 2  # the ranks agree that nothing is wrong
    assert whole(model[0].weight).equal(value)
    model[0].weight = nn.Parameter(2 * value)
    assert whole(model[0].weight).allclose(2 * value)
    model[0].weight = distribute_tensor(value, parameter.device_mesh, [Replicate()])
    assert whole(model[0].weight).equal(value)
    assert model[0].parametrizations.weight.original is parameter
    x, bias = batch()[0], whole(model[0].bias)
    torch.testing.assert_close(model[0](x), x @ value.T + bias)


def feasible() -> Tensor:
    return -torch.eye(N) + torch.arange(N * N).view(N, N) * (1 - torch.eye(N))


@on(2)
def test_a_wrong_value_is_refused_before_anything_is_assigned() -> None:
    model, value = sharded(), feasible()
    model[0].weight = value
    with pytest.raises(ValueError, match="weight: expected a tensor of shape"):
        model[0].weight = torch.zeros(N, N + 1)
    with pytest.raises(ValueError, match="weight: expected a finite diagonal, got 1 of 7"):
        model[0].weight = value.index_fill(0, torch.tensor([2]), torch.nan)
    assert whole(model[0].weight).equal(value)
    x, bias = batch()[0], whole(model[0].bias)
    torch.testing.assert_close(model[0](x), x @ value.T + bias)


@on(2)
def test_the_gathered_weight_is_not_assigned() -> None:
    model = sharded()
    with torch.no_grad():
        model[0].unshard()
    expected = r"weight: expected a sharded tensor to assign to.*reshard\(\)"
    with pytest.raises(ValueError, match=expected):
        model[0].weight = -torch.eye(N)
    model[0].reshard()
    model[0].weight = -torch.eye(N)
    assert whole(model[0].weight).equal(-torch.eye(N))


@on(2)
def test_is_initialised() -> None:
    alone, model = registered(), sharded()
    torch.manual_seed(3)
    init_(alone, "*.weight", nn.init.orthogonal_)
    torch.manual_seed(3 + dist.get_rank())  # the draw of the first rank counts
    init_(model, "*.weight", nn.init.orthogonal_)
    assert_same_weights(model, alone)


@on(2)
def test_is_reset() -> None:
    model = sharded()
    before = weights(model)
    for layer in (model[0], model[2]):
        layer.reset_parameters()
        assert whole(layer.weight).diagonal().max() < 0
    assert not any(map(torch.equal, weights(model), before))
