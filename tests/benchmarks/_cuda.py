"""What only a GPU shows: kernels launched, bandwidth achieved, and capture in a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.benchmarks import _trace
from tests.benchmarks._timing import Job


def kernels(run: Callable[[], object]) -> int:
    """How many kernels, copies and fills one run launches."""
    run()
    torch.cuda.synchronize()
    launched = {"kernel", "gpu_memcpy", "gpu_memset"}
    return sum(event.get("cat") in launched for event in _trace.events(run, torch.device("cuda")))


def captured_step(layer: nn.Module, x: Tensor) -> Job:
    """A compiled train step with SGD as a CUDA graph; each run replays it."""
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled(x).square().mean().backward()
        optimizer.step()

    # Capture wants every lazy set-up done, on a stream that is not the default one.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return Job(graph.replay)
