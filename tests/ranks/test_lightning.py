"""Lightning around a model: Fabric, and the Trainer, with DDP and with ModelParallelStrategy."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from negdiag_param import register_negative_diagonal
from tests.ranks.asserts import assert_originals_feasible, assert_trained_alike
from tests.ranks.harness import on
from tests.ranks.kinds import cut
from tests.ranks.models import EVEN, batch, make, registered, scrambled, shard, train

pytestmark = pytest.mark.integration("lightning")  # which the ranks alone import: it takes seconds


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
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    if kind == "tp":
        sizes = {"data_parallel_size": 1, "tensor_parallel_size": 2}
    given = {"parallelize_fn": parallelized} if of == "fabric" else {}
    strategy = "ddp" if "ddp" in kind else strategies.ModelParallelStrategy(**given, **sizes)
    return {"accelerator": "cpu", "devices": 2, "strategy": strategy}


def assert_trained_for_four_steps(model: nn.Module) -> None:
    alone = registered("clamp", EVEN)
    train(alone, split=False, steps=4)
    assert_originals_feasible(model)
    assert_trained_alike(model, alone)


@pytest.mark.parametrize("kind", ["ddp", "ddp, registered after", "fsdp2", "tp"])
@on(2)
def test_fabric_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    fabric = importlib.import_module("lightning.fabric").Fabric(**options(kind, "fabric"))
    fabric.launch()

    def prepared() -> dict[str, Any]:
        model = fabric.setup(registered("clamp", EVEN) if kind == "ddp" else make(EVEN))
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
    assert_trained_for_four_steps(second["model"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "tp"])
@on(2)
def test_the_trainer_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    lightning = importlib.import_module("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = registered("clamp", EVEN) if kind == "ddp" else make(EVEN)

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
    assert_trained_for_four_steps(module.model)
