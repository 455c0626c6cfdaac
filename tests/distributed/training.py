"""Checks of training under DDP, FSDP2 and tensor parallelism; each runs on every rank."""

import contextlib
import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from negdiag_param import (
    NegExpDiagonal,
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.distributed.ranks import Check

MAPS = ("exp", "softplus", "sign_flip")
N = 7  # uneven on any number of ranks
EVEN = 12  # what tensor parallelism itself asks for
PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def make(n: int = N) -> nn.Sequential:
    """The same model on every rank."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))


def registered(map: str = "exp", n: int = N, **options: object) -> nn.Sequential:
    return register_negative_diagonal(make(n), "*.weight", map=map, **options)


def world() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    """As many rows as suit 1, 2, 3 and 4 ranks. The target pulls the diagonals upwards."""
    torch.manual_seed(2)
    x = torch.randn(24, n)
    return x, 3 * x


def train(model: nn.Module, *, split: bool | DeviceMesh, steps: int = 12) -> Tensor:
    """A few steps towards a positive diagonal; on this rank's rows only if the data is split."""
    x, y = batch(next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features)
    if split:
        mesh = world() if split is True else split
        x, y = (part.chunk(mesh.size())[mesh.get_local_rank()] for part in (x, y))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.detach()


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(model: nn.Sequential) -> list[Tensor]:
    return [whole(model[i].weight) for i in (0, 2)]


def assert_trained_alike(model: nn.Sequential, alone: nn.Sequential, tolerance: float) -> None:
    for ours, theirs in zip(weights(model), weights(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert ours.diagonal().max() < 0


def collectives(
    build: Callable[[bool], nn.Sequential], split: bool | DeviceMesh
) -> dict[bool, dict]:
    """What a step communicates, for the plain model and for the registered one."""
    counts = {}
    for with_diagonal in (False, True):
        model = build(with_diagonal)
        train(model, split=split, steps=1)
        with CommDebugMode() as debug:
            train(model, split=split, steps=1)
        counts[with_diagonal] = dict(debug.get_comm_counts())
    return counts


def refused(
    expected: str, error: type[Exception] = ValueError
) -> contextlib.AbstractContextManager:
    return pytest.raises(error, match=expected)


# Data parallel


def ddp_trains(_: Path) -> None:
    for name in MAPS:
        alone, model = registered(name), registered(name)
        replicas = DistributedDataParallel(model)
        train(alone, split=False)
        train(replicas, split=True)
        assert_trained_alike(model, alone, 1e-6)


def ddp_refuses_a_later_registration(_: Path) -> None:
    replicas = DistributedDataParallel(make())
    with refused("expected a module that is not replicated yet.*-> DistributedDataParallel"):
        register_negative_diagonal(replicas, "module.*.weight")
    train(replicas, split=True, steps=2)


def ddp_model_is_read_initialised_and_restored(_: Path) -> None:
    model = registered()
    replicas = DistributedDataParallel(model)
    assert [name for name, _ in negative_diagonals(replicas)] == [
        "module.0.weight",
        "module.2.weight",
    ]
    init_(replicas, "module.0.weight", nn.init.constant_, 0.5)
    assert (model[0].weight.diagonal() - -0.5).abs().max() < 1e-6
    assert list(plain_state_dict(replicas)) == list(DistributedDataParallel(make()).state_dict())
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    train(replicas, split=True, steps=1)


# FSDP2


def sharded(with_diagonal: bool = True, map: str = "exp", **options: object) -> nn.Sequential:
    model = registered(map) if with_diagonal else make()
    for layer in (model[0], model[2], model):
        fully_shard(layer, **options)
    return model


def fsdp_trains(_: Path) -> None:
    for name in MAPS:
        alone, model = registered(name), sharded(map=name)
        train(alone, split=False)
        train(model, split=True)
        assert isinstance(model[0].parametrizations.weight.original, DTensor)
        assert_trained_alike(model, alone, 1e-6)


def fsdp_trains_in_mixed_precision(_: Path) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    seen = []
    for name in MAPS:
        model = sharded(map=name, mp_policy=policy)
        hook = model[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
        before = train(model, split=True, steps=1)
        after = train(model, split=True, steps=40)
        hook.remove()
        assert after < before
        assert all(w.diagonal().max() < 0 for w in weights(model))
    assert all(w.dtype == torch.bfloat16 and w.detach().diagonal().max() < 0 for w in seen)


def fsdp_communicates_as_without(_: Path) -> None:
    counts = collectives(lambda with_diagonal: sharded(with_diagonal), split=True)
    assert counts[True] == counts[False] != {}


def fsdp_weight_is_read_and_penalised_outside_forward(_: Path) -> None:
    alone, model = registered(), sharded()
    with CommDebugMode() as debug:
        weight = model[0].weight
    assert isinstance(weight, DTensor)
    assert not debug.get_comm_counts()
    assert whole(weight).equal(alone[0].weight)
    for m in (alone, model):
        total = sum(d.square().sum() for _, d in negative_diagonals(m))
        total = total + whole_graph(m[2].weight).exp().sum()
        total.backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad.placements == ours.placements
            torch.testing.assert_close(whole(ours.grad), theirs.grad)
    train(model, split=True, steps=1)


def whole_graph(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fsdp_weight_is_assigned_outside_forward(_: Path) -> None:
    model = sharded()
    parameter = model[0].parametrizations.weight.original
    value = -torch.eye(N) + torch.arange(N * N).view(N, N) * (1 - torch.eye(N))
    with CommDebugMode() as debug:
        model[0].weight = value
        model[0].weight = distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    assert not debug.get_comm_counts()
    assert whole(model[0].weight).equal(value)
    model[0].weight = nn.Parameter(2 * value)
    assert whole(model[0].weight).allclose(2 * value)
    model[0].weight = distribute_tensor(value, parameter.device_mesh, [Replicate()])
    assert whole(model[0].weight).equal(value)
    assert model[0].parametrizations.weight.original is parameter
    with refused("weight: expected a tensor of shape"):
        model[0].weight = torch.zeros(N, N + 1)
    with refused("weight: expected a finite diagonal, got 1 of 7"):
        model[0].weight = value.index_fill(0, torch.tensor([2]), torch.nan)
    assert whole(model[0].weight).equal(value)
    x, bias = batch()[0], whole(model[0].bias)
    torch.testing.assert_close(model[0](x), x @ value.T + bias)


def fsdp_gathered_weight_is_not_assigned(_: Path) -> None:
    model = sharded()
    with torch.no_grad():
        model[0].unshard()
    with refused(r"weight: expected a sharded tensor to assign to.*reshard\(\)"):
        model[0].weight = -torch.eye(N)
    model[0].reshard()
    model[0].weight = -torch.eye(N)
    assert whole(model[0].weight).equal(-torch.eye(N))


def fsdp_is_never_cached(_: Path) -> None:
    """Gathered tensors lie in the same place, under the same version, with other values."""
    for cached in (contextlib.nullcontext, parametrize.cached):
        model = register_negative_diagonal(make(256), "*.weight", cache_in_eval=True).eval()
        for layer in (model[0], model[2], model):
            fully_shard(layer)
        x, seen = torch.randn(2, 256), []
        with torch.no_grad(), cached():
            for _step in range(6):
                assert isinstance(model[2].weight, DTensor)
                seen.append(model(x))
                model[2].parametrizations.weight.original.sub_(0.25)
        assert not any(map(torch.equal, seen, seen[1:]))


def fsdp_initialises(_: Path) -> None:
    alone, model = registered(), sharded()
    torch.manual_seed(3)
    init_(alone, "*.weight", nn.init.orthogonal_)
    torch.manual_seed(3 + dist.get_rank())  # the draw of the first rank counts
    init_(model, "*.weight", nn.init.orthogonal_)
    for ours, theirs in zip(weights(model), weights(alone), strict=True):
        assert ours.equal(theirs)
    for layer in (model[0], model[2]):
        layer.reset_parameters()
        assert whole(layer.weight).diagonal().max() < 0
    assert not weights(model)[0].equal(weights(alone)[0])


def fsdp_from_meta(_: Path) -> None:
    with torch.device("meta"):
        model = registered()
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    model.to_empty(device="cpu")
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    train(model, split=True)
    assert all(w.diagonal().max() < 0 for w in weights(model))


def fsdp_refuses_other_orders(_: Path) -> None:
    model = make()
    fully_shard(model)
    classes, state = [type(m) for m in model.modules()], list(model.state_dict())
    for module, name in ((model, "*.weight"), (model[0], "weight")):
        with refused("weight: expected a module that is not sharded yet.*-> fully_shard"):
            register_negative_diagonal(module, name)
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == state
    model = sharded()
    for module, name in ((model, "*.weight"), (model[2], "weight")):
        with refused("weight: expected a module that is not sharded, .*plain_state_dict"):
            remove_negative_diagonal(module, name)
    train(model, split=True, steps=1)


# Tensor parallel


def parallel(with_diagonal: bool = True, map: str = "exp") -> nn.Sequential:
    model = parallelize_module(make(EVEN), world(), PLAN)
    return register_negative_diagonal(model, "*.weight", map=map) if with_diagonal else model


def tp_trains(_: Path) -> None:
    for name in MAPS:
        alone, model = registered(name, EVEN), parallel(map=name)
        for ours, theirs in zip(weights(model), weights(alone), strict=True):
            assert ours.equal(theirs)
        train(alone, split=False)
        train(model, split=False)
        assert_trained_alike(model, alone, 1e-6)


def tp_communicates_as_without(_: Path) -> None:
    counts = collectives(lambda with_diagonal: parallel(with_diagonal), split=False)
    assert counts[True] == counts[False] != {}


def tp_takes_the_bare_class(_: Path) -> None:
    alone, model = make(EVEN), parallelize_module(make(EVEN), world(), PLAN)
    for m in (alone, model):
        for layer in (m[0], m[2]):
            parametrize.register_parametrization(
                layer, "weight", NegExpDiagonal(infeasible="reflect")
            )
        train(m, split=False)
    assert_trained_alike(model, alone, 1e-6)


def tp_compiles_in_one_graph(_: Path) -> None:
    alone, model = registered(n=EVEN), parallel()
    train(alone, split=False)
    train(torch.compile(model, fullgraph=True, backend="aot_eager"), split=False)
    assert_trained_alike(model, alone, 1e-6)


def tp_is_removed(_: Path) -> None:
    model = parallel()
    train(model, split=False, steps=2)
    values, parameter = weights(model), model[0].parametrizations.weight.original
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    assert model[0].weight is parameter
    for ours, theirs in zip(weights(model), values, strict=True):
        assert ours.equal(theirs)
    train(model, split=False, steps=2)


def tp_is_assigned_initialised_and_monitored(_: Path) -> None:
    alone, model = registered(n=EVEN), parallel()
    for m in (alone, model):
        torch.manual_seed(4)
        init_(m, "*.weight", nn.init.xavier_normal_)
        m[0].weight = 2 * whole(m[2].weight)
    for ours, theirs in zip(weights(model), weights(alone), strict=True):
        assert ours.equal(theirs)
    for (name, ours), (same, theirs) in zip(
        negative_diagonals(model), negative_diagonals(alone), strict=True
    ):
        assert name == same
        assert whole(ours).equal(theirs)
    with parametrize.cached(), torch.no_grad():
        assert not whole(model[0].weight).equal(-torch.eye(EVEN))
        model[0].weight = -torch.eye(EVEN)
        assert whole(model[0].weight).equal(-torch.eye(EVEN))
    replica = copy.deepcopy(model)
    replica[0].weight = -3 * torch.eye(EVEN)
    assert whole(model[0].weight).equal(-torch.eye(EVEN))


def tp_refuses_to_follow_a_registration(_: Path) -> None:
    order = "without a negative diagonal.*parallelize_module -> register"
    styles = {
        ColwiseParallel(): refused(order),
        SequenceParallel(): refused(order),
        RowwiseParallel(): refused("should be used to distribute leaf tensors", RuntimeError),
    }
    for style, refusal in styles.items():
        for bias in (True, False):
            layer = register_negative_diagonal(nn.Linear(N, N, bias=bias))
            before = {k: v.clone() for k, v in layer.state_dict().items()}
            with refusal:
                parallelize_module(layer, world(), style)
            after = layer.state_dict()
            assert list(after) == list(before)
            assert all(type(after[k]) is Tensor and after[k].equal(before[k]) for k in before)
            layer(torch.randn(2, N)).sum().backward()
    with refused("without a negative diagonal"):
        distribute_module(register_negative_diagonal(nn.Linear(N, N)), world())


# FSDP2 over tensor parallelism


def grid() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


def sharded_twice(with_diagonal: bool = True, map: str = "exp") -> nn.Sequential:
    mesh = grid()
    model = parallelize_module(make(EVEN), mesh["tp"], PLAN)
    if with_diagonal:
        register_negative_diagonal(model, "*.weight", map=map)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh["dp"])
    return model


def fsdp_over_tp_trains(_: Path) -> None:
    for name in MAPS:
        alone, model = registered(name, EVEN), sharded_twice(map=name)
        train(alone, split=False)
        train(model, split=grid()["dp"])
        assert_trained_alike(model, alone, 1e-6)
        # Tensor parallelism and FSDP2 both cut the rows of the first layer.
        assert "_StridedShard" in repr(model[0].weight.placements)
        assert model[2].weight.placements == (Shard(0), Shard(1))


def fsdp_over_tp_communicates_as_without(_: Path) -> None:
    counts = collectives(lambda with_diagonal: sharded_twice(with_diagonal), split=grid()["dp"])
    assert counts[True] == counts[False] != {}


def fsdp_over_tp_is_read_and_assigned(_: Path) -> None:
    alone, model = registered(n=EVEN), sharded_twice()
    value = torch.randn(EVEN, EVEN)
    for m in (alone, model):
        init_(m, "2.weight", nn.init.orthogonal_)
        init_(m, "2.weight", nn.init.eye_)
        m[0].weight = value.fill_diagonal_(-2)
    for ours, theirs in zip(weights(model), weights(alone), strict=True):
        assert ours.equal(theirs)
    for (_name, ours), (_same, theirs) in zip(
        negative_diagonals(model), negative_diagonals(alone), strict=True
    ):
        assert whole(ours).equal(theirs)


# Placements


def partial_is_refused(_: Path) -> None:
    partial = DTensor.from_local(torch.randn(N, N), world(), [_partial()], run_check=False)
    for use in (NegExpDiagonal(), NegExpDiagonal().right_inverse):
        with refused(
            "weight: expected Shard or Replicate placements, found .*Partial.*redistribute"
        ):
            use(partial)
    layer = nn.Linear(N, N, bias=False)
    layer.weight = nn.Parameter(partial)
    with refused("weight: expected Shard or Replicate placements"):
        register_negative_diagonal(layer)
    assert type(layer) is nn.Linear


def _partial() -> object:
    from torch.distributed.tensor import Partial

    return Partial()


def other_shards_than_chunks_are_refused(_: Path) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    rows = 2 if rank == 0 else 4
    total = 2 + 4 * (ranks - 1)
    odd = DTensor.from_local(
        torch.randn(rows, total), world(), [Shard(0)], shape=(total, total), stride=(total, 1)
    )
    with refused("weight: expected a shard of shape"):
        NegExpDiagonal()(odd)


GRID_CHECKS: Iterable[Check] = [
    fsdp_over_tp_trains,
    fsdp_over_tp_communicates_as_without,
    fsdp_over_tp_is_read_and_assigned,
]
CHECKS: Iterable[Check] = [
    ddp_trains,
    ddp_refuses_a_later_registration,
    ddp_model_is_read_initialised_and_restored,
    fsdp_trains,
    fsdp_trains_in_mixed_precision,
    fsdp_communicates_as_without,
    fsdp_weight_is_read_and_penalised_outside_forward,
    fsdp_weight_is_assigned_outside_forward,
    fsdp_gathered_weight_is_not_assigned,
    fsdp_is_never_cached,
    fsdp_initialises,
    fsdp_from_meta,
    fsdp_refuses_other_orders,
    tp_trains,
    tp_communicates_as_without,
    tp_takes_the_bare_class,
    tp_compiles_in_one_graph,
    tp_is_removed,
    tp_is_assigned_initialised_and_monitored,
    tp_refuses_to_follow_a_registration,
    partial_is_refused,
    other_shards_than_chunks_are_refused,
]
