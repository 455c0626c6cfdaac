"""The columns of README's table of parallelisms: what is put around a model, on how many ranks."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from negdiag_param import register_negative_diagonal
from tests.ranks.models import EVEN, PLAN, make, shard
from tests.support.versions import HYBRID

Register = Callable[[nn.Module], nn.Module]


@functools.cache  # its process groups stay with the ranks
def mesh(*names: str) -> DeviceMesh:
    """All ranks in one dimension, or two by two."""
    shape = (dist.get_world_size(),) if len(names) == 1 else (2, dist.get_world_size() // 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def plan(model: nn.Sequential) -> dict[str, ParallelStyle]:
    return getattr(model, "plan", PLAN)


def ddp(model: nn.Sequential, register: Register) -> nn.Module:
    return DistributedDataParallel(register(model))


def fsdp2(model: nn.Sequential, register: Register) -> nn.Module:
    return shard(register(model), mesh=mesh("dp"))


def hsdp(model: nn.Sequential, register: Register) -> nn.Module:
    return shard(register(model), mesh=mesh("replicate", "dp"))


def tp(model: nn.Sequential, register: Register) -> nn.Module:
    return register(parallelize_module(model, mesh("tp"), plan(model)))


def fsdp2_tp(model: nn.Sequential, register: Register) -> nn.Module:
    both = mesh("dp", "tp")
    return shard(register(parallelize_module(model, both["tp"], plan(model))), mesh=both["dp"])


def fsdp1(model: nn.Sequential, register: Register, whole: bool = True) -> nn.Module:
    return FullyShardedDataParallel(
        register(model), use_orig_params=whole, device_id=torch.device("cpu")
    )


def fsdp1_flat(model: nn.Sequential, register: Register) -> nn.Module:
    return fsdp1(model, register, whole=False)


class Kind(NamedTuple):
    wrap: Callable[[nn.Sequential, Register], nn.Module]
    ranks: int = 2


KINDS = {
    "ddp": Kind(ddp),
    "fsdp2": Kind(fsdp2),
    "hsdp": Kind(hsdp, ranks=4),
    "tp": Kind(tp),
    "fsdp2_tp": Kind(fsdp2_tp, ranks=4),
    "fsdp1": Kind(fsdp1),
    "fsdp1_flat": Kind(fsdp1_flat),
}
FSDP1 = ("fsdp1", "fsdp1_flat")


def every_kind(*but: str) -> pytest.MarkDecorator:
    """The kinds with their ranks, for tests that run ``on()`` those."""
    rows = [
        pytest.param(name, kind.ranks, id=name, marks=HYBRID if name == "hsdp" else ())
        for name, kind in KINDS.items()
        if name not in but
    ]
    return pytest.mark.parametrize(("kind", "ranks"), rows)


def build(kind: str, seed: int = 0, **options: object) -> nn.Module:
    """A registered model of this kind, with weights of its own for every seed."""
    model = make(EVEN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * seed)
    return KINDS[kind].wrap(model, lambda m: register_negative_diagonal(m, "*.weight", **options))


def split_of(kind: str) -> bool | DeviceMesh:
    """How the batch is shared out: not at all among ranks that share one replica."""
    if kind == "fsdp2_tp":
        return mesh("dp", "tp")["dp"]
    return kind != "tp"
