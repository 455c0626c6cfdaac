"""A registered model that DistributedDataParallel replicates."""

import pytest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import MAPS, assert_trained_alike, make, registered, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@pytest.mark.parametrize("map", MAPS)
@on(2)
def test_trains_as_one_process(map: str) -> None:
    alone, model = registered(map), registered(map)
    replicas = DistributedDataParallel(model)
    train(alone, split=False)
    train(replicas, split=True)
    assert_trained_alike(model, alone)


@on(2)
def test_a_later_registration_is_refused() -> None:
    replicas = DistributedDataParallel(make())
    expected = "expected a module that is not replicated yet.*-> DistributedDataParallel"
    with pytest.raises(ValueError, match=expected):
        register_negative_diagonal(replicas, "module.*.weight")
    train(replicas, split=True, steps=2)


@on(2)
def test_is_read_initialised_and_restored() -> None:
    model = registered()
    replicas = DistributedDataParallel(model)
    names = [name for name, _ in negative_diagonals(replicas)]
    assert names == ["module.0.weight", "module.2.weight"]
    init_(replicas, "module.0.weight", nn.init.constant_, 0.5)
    assert (model[0].weight.diagonal() - -0.5).abs().max() < 1e-6
    assert list(plain_state_dict(replicas)) == list(DistributedDataParallel(make()).state_dict())
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    train(replicas, split=True, steps=1)
