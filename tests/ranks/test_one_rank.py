"""Every public function where one rank alone fails: all ranks raise, and none has changed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import negdiag_param
from negdiag_param import plain_state_dict
from tests.ranks.harness import CLOCK, on
from tests.ranks.one_rank import ROWS, in_a_mood, is_last

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]

# It reads what each rank holds, and nobody waits for anybody.
LOCAL = {"plain_state_dict"}
CASES = [(name, way) for name, ways in ROWS.items() for way in ways]


def test_every_public_name_is_in_the_table() -> None:
    assert {*ROWS, *LOCAL} == {*negdiag_param.__all__}


def contents(model: nn.Module) -> list[object]:
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    return [kinds, list(model.state_dict()), [p.detach().clone() for p in model.parameters()]]


@pytest.mark.parametrize(("name", "way"), CASES)
@on(2)
def test_all_ranks_raise_and_none_has_changed(name: str, way: str) -> None:
    model, call = ROWS[name][way]()
    before = contents(model)
    with pytest.raises((ValueError, RuntimeError)) as error:
        call()
    assert is_last() or "rank 1" in str(error.value)
    after = contents(model)
    assert after[:2] == before[:2]
    for ours, theirs in zip(after[2], before[2], strict=True):
        assert type(ours) is type(theirs)
        ours, theirs = (t.to_local() if isinstance(t, DTensor) else t for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    dist.barrier()  # where all ranks come to


@on(2)
def test_a_read_of_what_each_rank_holds_keeps_nobody_waiting() -> None:
    _, call = in_a_mood(plain_state_dict)()
    if is_last():
        with pytest.raises(RuntimeError, match="not in the mood"):
            call()
    else:
        call()
    dist.barrier()
