"""What the first compilation in a process imports and sets up, done once for all ranks."""

import torch

torch.compile(torch.nn.Sequential(torch.nn.Linear(1, 1)), backend="aot_eager")(torch.ones(1, 1))
torch.compiler.reset()
