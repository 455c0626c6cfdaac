"""What goes wrong on one rank goes wrong on all, and nothing has changed anywhere."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

from negdiag_param import (
    NegativeDiagonal,
    init_,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.harness import CLOCK, on
from tests.ranks.kinds import mesh
from tests.ranks.models import EVEN, PLAN, make, registered, shard, sharded, train, whole, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


def spoiled(tensor: DTensor, value: float) -> DTensor:
    """The tensor with one entry of its diagonal in the shard of the last rank."""
    full = -tensor.detach().full_tensor().abs()
    full.diagonal()[-1] = value
    rank, ranks = dist.get_rank(), dist.get_world_size()
    dim = next(p.dim for p in tensor.placements if isinstance(p, Shard))
    return DTensor.from_local(
        full.chunk(ranks, dim)[rank].contiguous(),
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


class Moody(NegativeDiagonal):
    """A map whose inverse fails on the last rank, for a value that only that one holds."""

    def map(self, x: Tensor) -> Tensor:
        return -x.exp()

    def inverse(self, d: Tensor) -> Tensor:
        return torch.where(d == -3.0, torch.nan, (-d).log())


def tensor_parallel(**options: object) -> nn.Sequential:
    model = parallelize_module(make(EVEN), world(), PLAN)
    return register_negative_diagonal(model, "*.weight", **options)


def assign(model: nn.Module, bad: float) -> None:
    model[0].weight = spoiled(model[0].parametrizations.weight.original, bad)


def load(model: nn.Module, bad: float) -> None:
    state = dict(plain_state_dict(model))
    state["0.weight"] = spoiled(state["0.weight"], bad)
    model.load_state_dict(state)


def initialise(model: nn.Module, bad: float) -> None:
    # Every rank fills with its own; the first one's counts.
    init_(model, "*.weight", nn.init.constant_, bad if dist.get_rank() == 0 else -1.0)


MODELS: dict[str, Callable[..., nn.Sequential]] = {
    "fsdp2": lambda **options: shard(registered(map=options.pop("map", "exp"), **options)),
    "tensor parallel": tensor_parallel,
}
CALLS = {"assign": assign, "load": load, "init_": initialise}
REASONS = {
    "nan": (torch.nan, {}, "finite diagonal, got [1-9]"),
    "infinity": (-torch.inf, {}, "finite diagonal, got [1-9]"),
    "infeasible": (2.0, {"infeasible": "error"}, "negative diagonal, got [1-9]"),
    "inverse": (-3.0, {"map": Moody}, "inverse|that all ranks can invert"),
}


def feasible_before(model: nn.Sequential) -> nn.Sequential:
    """With a diagonal that no option refuses."""
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(-layer.weight.abs())
    return model


def state(model: nn.Module) -> list[Tensor]:
    return [whole(p).clone() for p in model.parameters()]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", MODELS)
@on(2)
def test_all_ranks_raise_and_none_has_changed(kind: str, call: str, reason: str) -> None:
    bad, options, message = REASONS[reason]
    n = EVEN if kind == "tensor parallel" else 7
    model = feasible_before(make(n))
    if kind == "tensor parallel":
        model = parallelize_module(model, world(), PLAN)
    # Whose originals come back from a checkpoint as they were.
    register_negative_diagonal(model, "*.weight", **{"map": "exp", **options})
    if kind == "fsdp2":
        shard(model)
    before = state(model)
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        CALLS[call](model, bad)
    if call != "init_":  # there all ranks see the same
        assert f"rank {dist.get_world_size() - 1}" in str(error.value)
    for ours, theirs in zip(state(model), before, strict=True):
        assert torch.equal(ours, theirs)
    model(torch.ones(4, n)).sum().backward()  # nobody waits for anybody


@pytest.mark.parametrize("reason", REASONS)
@on(2)
def test_registration_after_tensor_parallelism(reason: str) -> None:
    bad, options, message = REASONS[reason]
    model = feasible_before(make(EVEN))
    with torch.no_grad():
        model[2].weight.diagonal()[-1] = bad
    parallelize_module(model, world(), PLAN)
    before, classes = state(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=rf"2\.weight: .*{message}.* on rank 1"):
        register_negative_diagonal(model, "*.weight", **options)
    assert [type(m) for m in model.modules()] == classes
    for ours, theirs in zip(state(model), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert [type(p) for p in model.parameters()] == [nn.Parameter] * 4 or all(
        isinstance(p, DTensor) for p in model.parameters()
    )


@on(2)
def test_a_warning_is_everybodys() -> None:
    model = sharded()
    value = spoiled(model[0].parametrizations.weight.original, 2.0)
    with pytest.warns(UserWarning, match="1 of 7 entries"):
        model[0].weight = value
    assert whole(model[0].weight)[-1, -1] == -2


@on(2)
def test_replicas_count_once() -> None:
    mesh = world()
    module = nn.Module()
    module.weight = nn.Parameter(DTensor.from_local(-torch.ones(3, 3), mesh, [Replicate()]))
    register_negative_diagonal(module)
    bad = DTensor.from_local(torch.full((3, 3), torch.nan), mesh, [Replicate()])
    with pytest.raises(ValueError, match="got 3 of 3 entries NaN"):
        module.weight = bad


@pytest.mark.parametrize("call", ["assign", "init_", "reset"])
@on(4)
def test_what_is_gathered_over_tensor_parallelism_is_not_written(call: str) -> None:
    grid = mesh("dp", "tp")
    model = parallelize_module(make(EVEN), grid["tp"], PLAN)
    register_negative_diagonal(model, "*.weight")
    shard(model, mesh=grid["dp"])
    value = -7 * torch.eye(EVEN)

    def write() -> None:
        if call == "assign":
            model[0].weight = value
        elif call == "init_":
            init_(model, "0.weight", torch.Tensor.copy_, value)
        else:
            model[0].reset_parameters()

    before = whole(model[0].weight)
    with torch.no_grad():
        model[0].unshard()
    with pytest.raises(ValueError, match=r"weight: expected a sharded tensor.*reshard\(\)"):
        write()
    model[0].reshard()
    assert torch.equal(whole(model[0].weight), before)
    write()
    found = whole(model[0].weight)
    assert not torch.equal(found, before)
    if call != "reset":
        torch.testing.assert_close(found, value)
    train(model, split=grid["dp"], steps=2)


@on(2)
def test_removal_is_refused_on_all_ranks() -> None:
    model = sharded()
    with pytest.raises(ValueError, match=r"0\.weight: expected a module that is not sharded"):
        remove_negative_diagonal(model, "*.weight")
    train(model, split=True, steps=1)
