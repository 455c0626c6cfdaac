"""Lightning around a model: Fabric, and the Trainer, with DDP and with ModelParallelStrategy."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from negdiag_param import register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.models import (
    EVEN,
    PLAN,
    assert_originals_feasible,
    batch,
    make,
    shard,
    train,
    whole,
    world,
)

if importlib.util.find_spec("lightning") is None:  # importing it takes seconds, on the ranks alone
    pytest.skip("lightning is not installed", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK), pytest.mark.filterwarnings("ignore")]


def parallelized(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    """What ModelParallelStrategy is given to do, in the order of README."""
    if mesh["tensor_parallel"].size() > 1:
        parallelize_module(model, mesh["tensor_parallel"], PLAN)
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


def rows(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's, if the data is split."""
    rank, ranks = (0, 1) if kind == "tp" else (world().get_local_rank(), 2)
    x, y = (part.chunk(ranks)[rank] for part in batch(EVEN))
    return x, y


def registered() -> nn.Sequential:
    return register_negative_diagonal(make(EVEN), "*.weight")


def trained(steps: int) -> nn.Sequential:
    alone = registered()
    train(alone, split=False, steps=steps)
    return alone


def fill(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)


def assert_alike(model: nn.Module, alone: nn.Module) -> None:
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach())


@pytest.mark.parametrize("kind", ["ddp", "ddp, registered after", "fsdp2", "tp"])
@on(2)
def test_fabric_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    fabric = importlib.import_module("lightning.fabric").Fabric(**options(kind, "fabric"))
    fabric.launch()

    def prepared() -> dict[str, Any]:
        model = fabric.setup(registered() if kind == "ddp" else make(EVEN))
        if kind == "ddp, registered after":
            register_negative_diagonal(model, "*.weight")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return {"model": model, "optimizer": fabric.setup_optimizers(optimizer)}

    def step(model: nn.Module, optimizer: Any) -> None:
        x, y = rows(kind)
        for _ in range(2):
            optimizer.zero_grad()
            fabric.backward((model(x) - y).square().mean())
            optimizer.step()
            assert_originals_feasible(model)

    first = prepared()
    step(**first)
    fabric.save(tmp_path / "checkpoint", first)
    second = prepared()
    fill(second["model"])
    fabric.load(tmp_path / "checkpoint", second)
    step(**second)
    assert_alike(second["model"], trained(steps=4))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "tp"])
@on(2)
def test_the_trainer_trains_and_resumes_as_one_process(kind: str, tmp_path: Path) -> None:
    lightning = importlib.import_module("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = registered() if kind == "ddp" else make(EVEN)

        def configure_model(self) -> None:
            if self.device_mesh is not None:
                parallelized(self.model, self.device_mesh)
            if self.starts_elsewhere:
                fill(self.model)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            return (self.model(batch[0]) - batch[1]).square().mean()

        def on_train_batch_end(self, *_: object) -> None:
            assert_originals_feasible(self.model)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Any, Module]:
        silent = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = lightning.Trainer(
            max_steps=steps, use_distributed_sampler=False, **silent, **options(kind, "pytorch")
        )
        data = torch.utils.data.TensorDataset(*rows(kind))
        module = Module()
        module.starts_elsewhere = checkpoint is not None
        trainer.fit(module, torch.utils.data.DataLoader(data, len(data)), ckpt_path=checkpoint)
        return trainer, module

    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "checkpoint")
    _, module = fit(4, tmp_path / "checkpoint")
    assert_alike(module, trained(steps=4))
