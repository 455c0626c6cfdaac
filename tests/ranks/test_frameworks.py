"""Accelerate and Lightning: their own optimizers, backward passes and checkpoints."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

from negdiag_param import init_, register_negative_diagonal, remove_negative_diagonal
from tests.ranks.asserts import assert_originals_feasible, assert_trained_alike
from tests.ranks.harness import on
from tests.ranks.kinds import cut
from tests.ranks.models import EVEN, N, alone, batch, make, registered, scrambled, shard, train

accelerate = pytest.importorskip("accelerate", "1.6")  # which knows FSDP2
# Lightning is imported by the ranks alone: it takes seconds.
pytestmark = pytest.mark.integration("accelerate", "lightning")

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
    found, model, optimizer = prepared(kind, registered())
    assert isinstance(model, WRAPPED[kind])
    trained(found, model, optimizer, 2)
    found.save_state(str(tmp_path))
    found.wait_for_everyone()
    found, model, optimizer = prepared(kind, init_(registered(), "*.weight", nn.init.eye_))
    found.load_state(str(tmp_path))
    assert_trained_alike(trained(found, model, optimizer, 2), alone(N, 4))
    state = found.get_state_dict(model)
    if state:  # fully_shard gathers it for the first rank only
        registered().load_state_dict(state)


@on(2)
def test_registers_and_removes_after_ddp_only() -> None:
    found, model, optimizer = prepared("ddp", make())
    register_negative_diagonal(model, "*.weight")
    assert_trained_alike(trained(found, model, optimizer, 4), alone(N, 4))
    remove_negative_diagonal(model, "*.weight")
    _, model, _ = prepared("fsdp2", make())
    with pytest.raises(ValueError, match=r"0\.weight: expected a module that is not sharded yet"):
        register_negative_diagonal(model, "*.weight")


@pytest.mark.parametrize("ours", [True, False])
@on(2)
def test_accelerate_wraps_no_layers_by_size_and_loads_no_state_but_parameters(ours: bool) -> None:
    """Neither ours nor PyTorch's own: such layers count as containers, and marks as buffers do."""
    wrap = register_negative_diagonal if ours else weight_norm
    layers = nn.Sequential(wrap(nn.Linear(4, 4), "weight"))
    with pytest.raises(ValueError, match="fully_shard does not support containers"):
        prepared("fsdp2", layers, auto_wrap_policy="size_based_wrap", min_num_params=1)
    model = registered() if ours else make().append(nn.BatchNorm1d(N))
    with pytest.raises(AttributeError, match="no attribute 'device_mesh'"):
        prepared("fsdp2", model, cpu_ram_efficient_loading=True)


def parallelized(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    """What ModelParallelStrategy is given to do, in the order of README."""
    if mesh["tensor_parallel"].size() > 1:
        cut(model, mesh["tensor_parallel"])
    register_negative_diagonal(model, "*.weight")
    if mesh["data_parallel"].size() > 1:
        shard(model, mesh=mesh["data_parallel"])
    return model


def options(kind: str, of: str) -> dict[str, Any]:
    """For a Fabric or a Trainer."""
    strategies = importlib.import_module(f"lightning.{of}.strategies")
    data, tensors = (1, 2) if kind == "tp" else (2, 1)
    sizes = {"data_parallel_size": data, "tensor_parallel_size": tensors}
    given = {"parallelize_fn": parallelized} if of == "fabric" else {}
    strategy = "ddp" if "ddp" in kind else strategies.ModelParallelStrategy(**given, **sizes)
    return {"accelerator": "cpu", "devices": 2, "strategy": strategy}


@pytest.mark.parametrize("kind", ["ddp", "ddp, registered after", "fsdp2", "tp"])
@on(2)
def test_fabric_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    fabric = importlib.import_module("lightning.fabric").Fabric(**options(kind, "fabric"))
    fabric.launch()

    def prepared() -> dict[str, Any]:
        model = fabric.setup(registered(n=EVEN) if kind == "ddp" else make(EVEN))
        if kind == "ddp, registered after":
            register_negative_diagonal(model, "*.weight")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return {"model": model, "optimizer": fabric.setup_optimizers(optimizer)}

    first, second = prepared(), prepared()
    train(**first, split=kind != "tp", steps=2, backward=fabric.backward)
    fabric.save(tmp_path / "checkpoint", first)
    scrambled(second["model"])
    fabric.load(tmp_path / "checkpoint", second)
    train(**second, split=kind != "tp", steps=2, backward=fabric.backward)
    assert_originals_feasible(second["model"])
    assert_trained_alike(second["model"], alone(EVEN, 4))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "tp"])
@on(2)
def test_the_trainer_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    lightning = importlib.import_module("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = registered(n=EVEN) if kind == "ddp" else make(EVEN)

        def configure_model(self) -> None:
            if self.device_mesh is not None:
                parallelized(self.model, self.device_mesh)
            if self.starts_elsewhere:
                scrambled(self.model)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return (self.model(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Any, Module]:
        silent = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = lightning.Trainer(
            max_steps=steps, use_distributed_sampler=False, **silent, **options(kind, "pytorch")
        )
        data = torch.utils.data.TensorDataset(*batch(EVEN, split=kind != "tp"))
        module = Module()
        module.starts_elsewhere = checkpoint is not None
        trainer.fit(module, torch.utils.data.DataLoader(data, len(data)), ckpt_path=checkpoint)
        return trainer, module

    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "checkpoint")
    _, module = fit(4, tmp_path / "checkpoint")
    assert_originals_feasible(module.model)
    assert_trained_alike(module.model, alone(EVEN, 4))
