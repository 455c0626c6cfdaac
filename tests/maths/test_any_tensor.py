"""Shapes, places of the diagonal, layouts and modes of PyTorch, drawn at random."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.asserts import assert_negative, assert_same_bits
from tests.support.modes import flushing, switched
from tests.support.tables import CONSTANTS

WIDE = st.sampled_from([torch.float32, torch.float64])
MARGINS = st.sampled_from([0.0, 1e-3, 0.1, 2.7])
examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class Where(NamedTuple):
    """A shape and the options that say where its diagonal lies."""

    shape: tuple[int, ...]
    options: dict[str, Any]

    def mask(self) -> Tensor:
        """True for diagonal entries, told by their indices."""
        ndim = len(self.shape)
        rows, columns = self.options.get("dims") or (0, 1)
        if ndim < 2 or self.options.get("dims") == ():
            return torch.ones(self.shape, dtype=torch.bool)
        steps = torch.meshgrid(*map(torch.arange, self.shape), indexing="ij")
        height = max(self.shape[rows] // self.options.get("blocks", 1), 1)
        mask = steps[rows] % height == steps[columns]
        if self.options.get("taps") == "center":
            for step, size in zip(steps[2:], self.shape[2:], strict=True):
                mask = mask & (step == (size - 1) // 2)
        return mask


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    """Of one to six dimensions, each of none to five entries."""
    ndim = draw(st.integers(1, 6))
    shape = draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim))
    kind = draw(st.sampled_from(["plain", "all", "dims", "blocks", "center"]))
    options: dict[str, Any] = {}
    if kind == "all":
        options["dims"] = ()
    elif kind == "dims" and ndim > 1:
        rows, columns = draw(st.permutations(range(ndim)))[:2]
        options["dims"] = (rows - ndim * draw(st.booleans()), columns)
    elif kind == "blocks" and ndim > 1:
        options["blocks"] = draw(st.integers(1, 4))
        shape[0] *= options["blocks"]
    elif kind == "center" and ndim > 2:
        options["taps"] = "center"
        shape[2:] = [max(size, 1) for size in shape[2:]]
        options["blocks"] = draw(st.integers(1, 3))
        shape[0] *= options["blocks"]
    return Where(tuple(shape), options)


@st.composite
def laid_out(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of that shape: contiguous, permuted, a slice of a larger one, or expanded."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["contiguous", "permuted", "sliced", "expanded"]))
    scale = 10.0 ** draw(st.integers(-6, 2))

    def random(*sizes: int) -> Tensor:
        return scale * torch.randn(sizes, generator=generator, dtype=dtype)

    if kind == "permuted":
        order = draw(st.permutations(range(len(shape))))
        return random(*(shape[dim] for dim in order)).permute([
            order.index(dim) for dim in range(len(shape))
        ])
    if kind == "sliced":
        return random(*(2 * size + 1 for size in shape))[tuple(slice(1, None, 2) for _ in shape)]
    if kind == "expanded" and all(shape):
        return random(1, *shape[1:]).expand(shape)
    return random(*shape)


MODES = {
    "as it is": nullcontext,
    "flushed subnormals": flushing,
    "another default dtype": partial(
        switched, torch.set_default_dtype, torch.float64, torch.float32
    ),
    "another default device": lambda: torch.device("meta"),
    "deterministic algorithms": partial(switched, torch.use_deterministic_algorithms, True, False),
    "anomaly detection": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONSTANTS)
@examples
@given(data=st.data(), where=wheres(), dtype=WIDE, margin=MARGINS)
def test_any_tensor(name, mode, data, where, dtype, margin):
    original = data.draw(laid_out(where.shape, dtype))
    mask = where.mask()
    # The same at every draw: a size of the slope that a finite gradient cannot overflow with.
    upstream = torch.linspace(-2.0, 2.0, max(math.prod(where.shape), 1), dtype=dtype)
    upstream = upstream[: math.prod(where.shape)].reshape(where.shape)
    with MODES[mode]():
        parametrization = CONSTANTS[name](margin, infeasible="error", **where.options)
        leaf = original.clone().requires_grad_()
        weight = parametrization(leaf)
        weight.backward(upstream)
        with torch.no_grad():
            again = parametrization(leaf)
        inverse = parametrization.right_inverse(weight.detach())
        found = parametrization(inverse)

    assert (weight.shape, weight.dtype, weight.device) == (leaf.shape, dtype, leaf.device)
    assert_same_bits(weight[~mask], original[~mask])
    if mask.any():
        assert_negative(weight[mask].double(), margin)
    assert parametrization.entries(original).numel() == mask.sum()
    assert_same_bits(again, weight)
    assert_same_bits(leaf.grad[~mask], upstream[~mask])
    assert leaf.grad.isfinite().all()
    assert inverse.isfinite().all()
    torch.testing.assert_close(found, weight, rtol=2 * torch.finfo(dtype).eps, atol=0)
