"""What old releases of PyTorch get wrong without this package too, on plain models."""

import pytest
import torch

RESUMES = pytest.mark.skipif(
    torch.__version__ < "2.9",
    reason="PyTorch 2.7 and 2.8 resume no optimizer on another number of ranks",
)
PIPELINES = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="schedules hang in PyTorch 2.7, and one fails in 2.8"
)
