"""What the first compilation in a process imports and sets up, done once for all ranks."""

import torch

model = torch.nn.Sequential(torch.nn.Linear(1, 1))
with torch.no_grad():  # who is forked from a process that ran backward can do so no more
    torch.compile(model, backend="aot_eager")(torch.ones(1, 1))
torch.compiler.reset()
