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
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from negdiag_param import register_negative_diagonal
from tests.ranks.models import EVEN, PLAN, N, make, shard
from tests.support.versions import HYBRID, UNEVEN

Register = Callable[[nn.Module], nn.Module]


@functools.cache  # its process groups stay with the ranks
def mesh(*names: str) -> DeviceMesh:
    """All ranks in one dimension, or two by two; without names, that if there are four."""
    ranks = dist.get_world_size()
    shape = (2, ranks // 2) if len(names) == 2 or (not names and ranks == 4) else (ranks,)
    return init_device_mesh("cpu", shape, mesh_dim_names=names or None)


def cut(model: nn.Sequential, over: DeviceMesh) -> nn.Sequential:
    return parallelize_module(model, over, getattr(model, "plan", PLAN))


def fsdp2_tp(model: nn.Sequential, register: Register) -> nn.Module:
    both = mesh("dp", "tp")
    return shard(register(cut(model, both["tp"])), mesh=both["dp"])


def fsdp1(model: nn.Sequential, register: Register, whole: bool = True) -> nn.Module:
    return FullyShardedDataParallel(
        register(model), use_orig_params=whole, device_id=torch.device("cpu")
    )


class Kind(NamedTuple):
    wrap: Callable[[nn.Sequential, Register], nn.Module]
    ranks: int = 2


KINDS = {
    "ddp": Kind(lambda model, register: DistributedDataParallel(register(model))),
    "fsdp2": Kind(lambda model, register: shard(register(model), mesh=mesh("dp"))),
    "hsdp": Kind(lambda model, register: shard(register(model), mesh=mesh("replicate", "dp")), 4),
    "tp": Kind(lambda model, register: register(cut(model, mesh("tp")))),
    "fsdp2_tp": Kind(fsdp2_tp, 4),
    "fsdp1": Kind(fsdp1),
    "fsdp1_flat": Kind(functools.partial(fsdp1, whole=False)),
}
FSDP1 = ("fsdp1", "fsdp1_flat")


def kinds(*names: str) -> pytest.MarkDecorator:
    """These with their ranks, for tests that run ``on()`` those."""
    marks = {"hsdp": HYBRID, "fsdp2_tp": UNEVEN}
    rows = [pytest.param(n, KINDS[n].ranks, id=n, marks=marks.get(n, ())) for n in names]
    return pytest.mark.parametrize(("kind", "ranks"), rows)


def every_kind(*but: str) -> pytest.MarkDecorator:
    return kinds(*(name for name in KINDS if name not in but))


def size(kind: str) -> int:
    """Uneven where shards may be: three rows for tensor parallelism, which FSDP2 splits by two."""
    return {"tp": EVEN, "fsdp2_tp": 6}.get(kind, N)


def build(kind: str, seed: int = 0, n: int | None = None, **options: object) -> nn.Module:
    """A registered model of this kind, with weights of its own for every seed."""
    model = make(n or size(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * seed)
    return KINDS[kind].wrap(model, lambda m: register_negative_diagonal(m, "*.weight", **options))


def bare(kind: str) -> nn.Module:
    """The same, not registered."""
    return KINDS[kind].wrap(make(size(kind)), lambda model: model)


def split_of(kind: str) -> bool | DeviceMesh:
    """How the batch is shared out: not at all among ranks that share one replica."""
    return mesh("dp", "tp")["dp"] if kind == "fsdp2_tp" else kind != "tp"
