"""A registered model under FullyShardedDataParallel, the predecessor of fully_shard."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import N, make, registered, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


def wrapped(model: nn.Module, original_parameters: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model, use_orig_params=original_parameters, device_id=torch.device("cpu")
    )


either_way = pytest.mark.parametrize("original_parameters", [True, False])


@either_way
@on(2)
def test_trains_as_one_process(original_parameters: bool) -> None:
    alone, model = registered(), wrapped(registered(), original_parameters)
    train(alone, split=False)
    train(model, split=True)
    with FullyShardedDataParallel.summon_full_params(model):
        found, expected = dict(negative_diagonals(model)), dict(negative_diagonals(alone))
        assert found.keys() == expected.keys()
        for name, diagonal in found.items():
            torch.testing.assert_close(diagonal, expected[name])
            assert (diagonal < 0).all()
    plain = plain_state_dict(model)
    assert list(plain) == list(make().state_dict())
    for name, value in plain_state_dict(alone).items():
        torch.testing.assert_close(plain[name], value)


@either_way
@on(2)
def test_what_cannot_be_done_is_refused(original_parameters: bool) -> None:
    model = wrapped(registered(), original_parameters)
    with pytest.raises(ValueError, match="summon_full_params"):
        init_(model, "0.weight", nn.init.ones_)
    with pytest.raises(ValueError, match="that is not sharded"):
        remove_negative_diagonal(model, "0.weight")
    with (
        FullyShardedDataParallel.summon_full_params(model),
        pytest.raises(ValueError, match="before FullyShardedDataParallel wraps the model"),
    ):
        init_(model, "0.weight", nn.init.ones_)
    with pytest.raises(ValueError, match="summon_full_params"):
        list(negative_diagonals(model))
    train(model, split=True, steps=2)


@on(2)
def test_a_later_registration_is_refused() -> None:
    model = wrapped(make(), True)
    with pytest.raises(ValueError, match="FullyShardedDataParallel manages"):
        register_negative_diagonal(model, "0.weight")
    train(model, split=True, steps=2)


class Same(nn.Module):
    """A parametrization as PyTorch has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0


@pytest.mark.parametrize("ours", [True, False])
@on(2)
def test_what_is_compiled_anew_after_a_backward_pass_fails_as_any_parametrization(
    ours: bool,
) -> None:
    torch._dynamo.reset()
    layer = nn.Linear(N, N)
    if ours:
        register_negative_diagonal(layer)
    else:
        parametrize.register_parametrization(layer, "weight", Same())
    layer.compile(backend="eager")
    model = wrapped(nn.Sequential(layer), True)
    train(model, split=True, steps=2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="attempting to assign a gradient"):
        model(torch.ones(2, N))
