"""A plain checkpoint that the first rank alone has read, and hands to the others."""

import copy
import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from negdiag_param import plain_state_dict, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    PLAN,
    assert_weights,
    make,
    registered,
    sharded,
    train,
    weights,
    whole,
    world,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def checkpoint() -> dict[str, Tensor]:
    """Of a model that has been trained."""
    model = registered()
    train(model, split=False, steps=2)
    return plain_state_dict(model)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ["fsdp2", "tensor parallel", "replicas"])
@on(2)
def test_plain_checkpoint_of_the_first_rank_is_read_by_all(kind: str, strict: bool) -> None:
    plain = checkpoint()
    if kind == "fsdp2":
        model = sharded()
    elif kind == "replicas":
        model = DistributedDataParallel(registered()).module
    else:
        model = parallelize_module(make(), world(), PLAN)
        register_negative_diagonal(model, "*.weight")
    given = copy.copy(plain) if dist.get_rank() == 0 else {}
    options = dataclasses.replace(BROADCAST, strict=strict)
    set_model_state_dict(model, given, options=options)
    assert_weights(model, [plain["0.weight"], plain["2.weight"]], 1e-6)
    for layer in (0, 2):
        assert whole(model[layer].bias).equal(plain[f"{layer}.bias"])


@on(2)
def test_a_bad_plain_checkpoint_of_the_first_rank_is_refused_by_all() -> None:
    plain, model = checkpoint(), sharded()
    before = weights(model)
    plain["2.weight"][0, 0] = torch.nan
    given = plain if dist.get_rank() == 0 else {}
    with pytest.raises(RuntimeError, match=r"2\.weight: expected a finite diagonal"):
        set_model_state_dict(model, given, options=BROADCAST)
    assert torch.equal(whole(model[2].weight), before[1])
