"""Set-ups of every test."""

import torch

# The tensors are small: a second thread would only be waited for, above all on a busy machine.
torch.set_num_threads(1)
