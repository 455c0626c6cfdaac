"""Accelerate around a model: its own optimizers, backward passes and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

from negdiag_param import init_, register_negative_diagonal, remove_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import EVEN, assert_originals_feasible, batch, make, train, whole, world

accelerate = pytest.importorskip("accelerate", "1.6")  # which knows FSDP2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK), pytest.mark.filterwarnings("ignore")]

WRAPPED = {"ddp": DistributedDataParallel, "fsdp2": FSDPModule}


def accelerator(kind: str, model: nn.Module, **options: object) -> accelerate.Accelerator:
    """One of which other tests know nothing."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    found = accelerate.Accelerator(cpu=True)
    if kind == "fsdp2":
        # Accelerate leaves a CPU to DDP, unless it is told that it has decided already.
        for state in (accelerate.PartialState(), found.state):
            state.distributed_type = accelerate.DistributedType.FSDP
        found.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=2,
            **{
                "auto_wrap_policy": "transformer_based_wrap",
                "transformer_cls_names_to_wrap": [type(model[0]).__name__],
                **options,
            },
        )
    return found


def prepared(
    kind: str, model: nn.Module, **options: object
) -> tuple[accelerate.Accelerator, nn.Module, torch.optim.Optimizer]:
    found = accelerator(kind, model, **options)
    return found, *found.prepare(model, torch.optim.Adam(model.parameters(), lr=0.05))


def step(
    found: accelerate.Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """On this rank's rows, as Accelerate has it."""
    x, y = (part.chunk(world().size())[world().get_local_rank()] for part in batch(EVEN))
    for _ in range(steps):
        optimizer.zero_grad()
        found.backward((model(x) - y).square().mean())
        optimizer.step()
        assert_originals_feasible(model)


def registered() -> nn.Sequential:
    return register_negative_diagonal(make(EVEN), "*.weight")


def assert_alike(model: nn.Module, alone: nn.Module) -> None:
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach())


@pytest.mark.parametrize("kind", WRAPPED)
@on(2)
def test_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    alone = registered()
    train(alone, split=False, steps=4)
    found, model, optimizer = prepared(kind, registered())
    assert isinstance(model, WRAPPED[kind])
    step(found, model, optimizer, 2)
    found.save_state(str(tmp_path))
    found.wait_for_everyone()
    found, model, optimizer = prepared(kind, init_(registered(), "*.weight", nn.init.eye_))
    found.load_state(str(tmp_path))
    step(found, model, optimizer, 2)
    assert_alike(model, alone)
    state = found.get_state_dict(model)
    if state:  # fully_shard gathers it for the first rank only
        registered().load_state_dict(state)


@on(2)
def test_registers_and_removes_after_ddp_only() -> None:
    alone = registered()
    found, model, optimizer = prepared("ddp", make(EVEN))
    register_negative_diagonal(model, "*.weight")
    step(found, model, optimizer, 4)
    train(alone, split=False, steps=4)
    assert_alike(model, alone)
    remove_negative_diagonal(model, "*.weight")
    _, model, _ = prepared("fsdp2", make(EVEN))
    with pytest.raises(ValueError, match=r"0\.weight: expected a module that is not sharded yet"):
        register_negative_diagonal(model, "*.weight")


@pytest.mark.parametrize("what", ["registered", "buffers"])
@on(2)
def test_efficient_loading_takes_no_state_but_parameters(what: str) -> None:
    """Neither buffers of the plain model nor our marks."""
    model = registered() if what == "registered" else make(EVEN).append(nn.BatchNorm1d(EVEN))
    with pytest.raises(AttributeError, match="no attribute 'device_mesh'"):
        prepared("fsdp2", model, cpu_ram_efficient_loading=True)


@pytest.mark.parametrize("parametrize", [register_negative_diagonal, weight_norm])
@on(2)
def test_layers_are_not_wrapped_by_their_size(parametrize: Callable[..., nn.Module]) -> None:
    """Neither ours nor PyTorch's own: their size is that of a container without a forward."""
    model = nn.Sequential(parametrize(nn.Linear(EVEN, EVEN), "weight"))
    with pytest.raises(ValueError, match="fully_shard does not support containers"):
        prepared("fsdp2", model, auto_wrap_policy="size_based_wrap", min_num_params=1)
