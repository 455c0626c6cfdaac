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
from tests.ranks.asserts import assert_originals_feasible, assert_trained_alike
from tests.ranks.harness import on
from tests.ranks.models import make, registered, train

accelerate = pytest.importorskip("accelerate", "1.6")  # which knows FSDP2
pytestmark = pytest.mark.integration("accelerate")

WRAPPED = {"ddp": DistributedDataParallel, "fsdp2": FSDPModule}


def prepared(
    kind: str, model: nn.Module, **options: object
) -> tuple[accelerate.Accelerator, nn.Module, torch.optim.Optimizer]:
    """By an accelerator of which other tests know nothing."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    found = accelerate.Accelerator(cpu=True)
    if kind == "fsdp2":
        # Accelerate leaves a CPU to DDP, unless it is told that it has decided already.
        for state in (accelerate.PartialState(), found.state):
            state.distributed_type = accelerate.DistributedType.FSDP
        wrapped = {
            "auto_wrap_policy": "transformer_based_wrap",
            "transformer_cls_names_to_wrap": [type(model[0]).__name__],
        }
        found.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=2, **wrapped | options
        )
    return found, *found.prepare(model, torch.optim.Adam(model.parameters(), lr=0.05))


def trained(
    found: accelerate.Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> nn.Module:
    train(model, split=True, steps=steps, optimizer=optimizer, backward=found.backward)
    assert_originals_feasible(model)
    return model


@pytest.mark.parametrize("kind", WRAPPED)
@on(2)
def test_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    alone = registered("clamp")
    train(alone, split=False, steps=4)
    found, model, optimizer = prepared(kind, registered("clamp"))
    assert isinstance(model, WRAPPED[kind])
    trained(found, model, optimizer, 2)
    found.save_state(str(tmp_path))
    found.wait_for_everyone()
    other = init_(registered("clamp"), "*.weight", nn.init.eye_)
    found, model, optimizer = prepared(kind, other)
    found.load_state(str(tmp_path))
    assert_trained_alike(trained(found, model, optimizer, 2), alone)
    state = found.get_state_dict(model)
    if state:  # fully_shard gathers it for the first rank only
        registered("clamp").load_state_dict(state)


@on(2)
def test_registers_and_removes_after_ddp_only() -> None:
    alone = registered("clamp")
    found, model, optimizer = prepared("ddp", make())
    register_negative_diagonal(model, "*.weight")
    train(alone, split=False, steps=4)
    assert_trained_alike(trained(found, model, optimizer, 4), alone)
    remove_negative_diagonal(model, "*.weight")
    _, model, _ = prepared("fsdp2", make())
    with pytest.raises(ValueError, match=r"0\.weight: expected a module that is not sharded yet"):
        register_negative_diagonal(model, "*.weight")


@pytest.mark.parametrize("what", ["registered", "buffers"])
@on(2)
def test_efficient_loading_takes_no_state_but_parameters(what: str) -> None:
    """Neither buffers of the plain model nor our marks."""
    model = registered() if what == "registered" else make().append(nn.BatchNorm1d(7))
    with pytest.raises(AttributeError, match="no attribute 'device_mesh'"):
        prepared("fsdp2", model, cpu_ram_efficient_loading=True)


@pytest.mark.parametrize("parametrize", [register_negative_diagonal, weight_norm])
@on(2)
def test_layers_are_not_wrapped_by_their_size(parametrize: Callable[..., nn.Module]) -> None:
    """Neither ours nor PyTorch's own: their size is that of a container without a forward."""
    model = nn.Sequential(parametrize(nn.Linear(4, 4), "weight"))
    with pytest.raises(ValueError, match="fully_shard does not support containers"):
        prepared("fsdp2", model, auto_wrap_policy="size_based_wrap", min_num_params=1)
