"""Outside of training: the weight is read, penalised, assigned, initialised and removed."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor import parallel as styles
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.utils import parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.asserts import assert_exactly, layers, monitored, plain, weights, whole
from tests.ranks.harness import on
from tests.ranks.kinds import FSDP1, bare, build, every_kind, kinds, mesh, size, split_of
from tests.ranks.models import EVEN, N, make, output, registered, train
from tests.support.versions import COPIED_SHARDS


def feasible(n: int) -> Tensor:
    return -torch.eye(n) + torch.arange(n * n).view(n, n) * (1 - torch.eye(n))


@every_kind(*FSDP1)
@on()
def test_is_read_penalised_and_initialised_as_on_one_process(kind: str) -> None:
    alone, model = registered("clamp", size(kind)), build(kind)
    with CommDebugMode() as debug:
        weight = layers(model)[0].weight
    assert not debug.get_comm_counts()
    assert type(weight) is (Tensor if kind == "ddp" else DTensor)
    assert_exactly(weights(model), weights(alone))
    for m in (alone, model):
        last = layers(m)[1].weight
        last = last.full_tensor() if isinstance(last, DTensor) else last
        (sum(d.square().sum() for _, d in negative_diagonals(m)) + last.exp().sum()).backward()
    for ours, theirs in zip(layers(model), layers(alone), strict=True):
        ours, theirs = (m.parametrizations.weight.original for m in (ours, theirs))
        assert getattr(ours.grad, "placements", None) == getattr(ours, "placements", None)
        torch.testing.assert_close(whole(ours.grad), theirs.grad)
    torch.manual_seed(3)
    init_(alone, "*.weight", nn.init.orthogonal_)
    torch.manual_seed(3 if kind == "ddp" else 3 + dist.get_rank())  # the first rank's draw counts
    init_(model, "*.weight", nn.init.orthogonal_)
    assert_exactly(weights(model), weights(alone))
    assert_exactly(monitored(model), monitored(alone))
    for layer in layers(model):
        before = whole(layer.weight)
        layer.reset_parameters()
        assert whole(layer.weight).diagonal().max() < 0
        assert not whole(layer.weight).equal(before)
    train(model, split=split_of(kind), steps=1)


@every_kind(*FSDP1)
@on()
def test_is_assigned(kind: str) -> None:
    model, value = build(kind), feasible(size(kind))
    layer = layers(model)[0]
    original = layer.parametrizations.weight.original
    rows: list[tuple[Tensor, int | None]] = [(nn.Parameter(3 * value), 0), (value, 0)]
    if kind != "ddp":
        mesh = original.device_mesh
        replicas = distribute_tensor(value, mesh, [Replicate()] * mesh.ndim)
        # For what is distributed as the original is, ranks agree that nothing is wrong.
        rows = [(layer.weight.detach() * 2, 2 * mesh.ndim), (replicas, None), *rows]
    for given, collectives in rows:
        with CommDebugMode() as debug:
            layer.weight = given
        assert collectives in {None, debug.get_total_counts()}
        assert_exactly(whole(layer.weight), whole(given))
    assert layer.parametrizations.weight.original is original
    with pytest.raises(ValueError, match="weight: expected a tensor of shape"):
        layer.weight = value[:, 1:]
    with pytest.raises(ValueError, match="a finite diagonal, got 1 of"):
        layer.weight = value.index_fill(0, torch.tensor([2]), torch.nan)
    assert_exactly(whole(layer.weight), value)
    stock = make(size(kind))
    stock.load_state_dict(plain(model))
    torch.testing.assert_close(output(model), output(stock))


@pytest.mark.parametrize("call", ["assign", "init_", "reset"])
@kinds("fsdp2", "fsdp2_tp")
@on()
def test_what_is_gathered_is_not_written(kind: str, call: str) -> None:
    model, value = build(kind, n=EVEN), -7 * torch.eye(EVEN)
    write = {
        "assign": lambda: setattr(model[0], "weight", value),
        "init_": lambda: init_(model, "0.weight", Tensor.copy_, value),
        "reset": lambda: model[0].reset_parameters(),
    }[call]
    before = whole(model[0].weight)
    with torch.no_grad():
        model[0].unshard()
    with pytest.raises(ValueError, match=r"weight: expected a sharded tensor.*reshard\(\)"):
        write()
    model[0].reshard()
    assert whole(model[0].weight).equal(before)
    write()
    found = whole(model[0].weight)
    assert not found.equal(before) if call == "reset" else found.equal(value)
    train(model, split=split_of(kind), steps=2)


@kinds("fsdp2", "hsdp", "fsdp2_tp", "fsdp1")
@on()
def test_what_is_sharded_is_not_registered_nor_removed(kind: str) -> None:
    managed = "FullyShardedDataParallel manages" if kind == "fsdp1" else "-> fully_shard"
    for model, call, message in (
        (bare(kind), register_negative_diagonal, f"weight: expected a .* not sharded .*{managed}"),
        (build(kind), remove_negative_diagonal, "a module that is not sharded, .*plain_state_dict"),
    ):
        classes, state = [type(m) for m in model.modules()], list(model.state_dict())
        for module, name in ((model, "*.weight"), (layers(model)[0], "weight")):
            with pytest.raises(ValueError, match=message):
                call(module, name)
        assert [type(m) for m in model.modules()] == classes
        assert list(model.state_dict()) == state
        train(model, split=split_of(kind), steps=2)


@kinds(*FSDP1)
@on()
def test_fsdp1_shows_weights_within_summon_full_params_and_takes_none(kind: str) -> None:
    model = build(kind)
    with pytest.raises(ValueError, match="summon_full_params"):
        init_(model, "0.weight", nn.init.ones_)
    with pytest.raises(ValueError, match="summon_full_params"):
        list(negative_diagonals(model))
    with pytest.raises(ValueError, match="that is not sharded"):
        remove_negative_diagonal(model, "0.weight")
    with FullyShardedDataParallel.summon_full_params(model):
        with pytest.raises(ValueError, match="before FullyShardedDataParallel wraps the model"):
            init_(model, "0.weight", nn.init.ones_)
        assert_exactly(monitored(model), monitored(registered("clamp")))
    train(model, split=True, steps=2)


@pytest.mark.parametrize("map", ["clamp", "exp"])
@on(2)
def test_tensor_parallel_layers_are_cast_and_removed(map: str) -> None:
    """Both swap tensors in place, which PyTorch refuses where a weak reference is left to one."""
    model = build("tp", map=map)
    train(model, split=False, steps=2)
    parameter = model[0].parametrizations.weight.original
    model.double()
    values = plain(model)
    remove_negative_diagonal(model, "*.weight")
    assert type(model[0]) is nn.Linear
    assert model[0].weight is parameter
    assert parameter.dtype == torch.float64
    assert_exactly({key: whole(value) for key, value in model.state_dict().items()}, values)
    train(model.float(), split=False, steps=2)


@COPIED_SHARDS
@on(2)
def test_tensor_parallel_layers_are_not_cached_nor_shared_with_copies() -> None:
    model, eye = build("tp"), torch.eye(EVEN)
    with parametrize.cached(), torch.no_grad():
        assert not whole(model[0].weight).equal(-eye)
        model[0].weight = -eye
        assert whole(model[0].weight).equal(-eye)
    replica = copy.deepcopy(model)
    replica[0].weight = -3 * eye
    assert whole(model[0].weight).equal(-eye)


STYLES = [styles.ColwiseParallel(), styles.RowwiseParallel(), styles.SequenceParallel()]
WAYS = {
    **{type(s).__name__: partial(styles.parallelize_module, parallelize_plan=s) for s in STYLES},
    "distribute_module": distribute_module,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", WAYS)
@on(2)
def test_a_registered_layer_is_not_distributed(way: str, bias: bool) -> None:
    layer = register_negative_diagonal(nn.Linear(N, N, bias=bias))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    order = "a Linear without a negative diagonal .*parallelize_module -> register"
    with pytest.raises(ValueError, match=order):
        WAYS[way](layer, device_mesh=mesh("tp"))
    after = layer.state_dict()
    assert_exactly(after, before)
    assert all(type(value) is Tensor for value in after.values())
    layer(torch.randn(2, N)).sum().backward()
