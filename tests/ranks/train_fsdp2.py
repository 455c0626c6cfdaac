"""Trains negative diagonals under FSDP2, and resumes on any number of ranks.

torchrun --nproc-per-node 2 train_fsdp2.py checkpoint
torchrun --nproc-per-node 3 train_fsdp2.py checkpoint --resume
"""

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from negdiag_param import negative_diagonals, register_negative_diagonal

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
register_negative_diagonal(model, "*.weight", margin=0.1)  # first register, then shard
fully_shard(model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
if options.resume:
    dcp.load(state, checkpoint_id=options.checkpoint)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )

torch.manual_seed(dist.get_rank())
for _ in range(20):
    x = torch.randn(32, 8)
    loss = (model(x) - x).square().mean()  # which pulls the diagonals upwards
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
dcp.save(state, checkpoint_id=options.checkpoint)
largest = max(diagonal.max().item() for _, diagonal in negative_diagonals(model))
if dist.get_rank() == 0:
    print(f"loss {loss.item():.4f}, largest diagonal entry {largest:.4f}")
dist.destroy_process_group()
