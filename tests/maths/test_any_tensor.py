"""Shapes, places of the diagonal, layouts and modes of PyTorch, drawn at random."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.asserts import assert_negative, assert_same_bits
from tests.support.modes import flushing, switched
from tests.support.tables import VARIANTS
from tests.support.wheres import wheres

WIDE = st.sampled_from([torch.float32, torch.float64])
MARGINS = st.sampled_from([0.0, 1e-3, 0.1, 2.7])
examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


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
OTHERS = [mode for mode in MODES if mode != "as it is"]
HERE = ("clamp", "exp")  # the maps that meet every mode


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "as it is") for name in VARIANTS] + [(name, m) for name in HERE for m in OTHERS],
)
@examples
@given(data=st.data(), where=wheres(), dtype=WIDE, margin=MARGINS)
def test_the_diagonal_of_any_tensor_is_mapped_and_nothing_else(
    name, mode, data, where, dtype, margin
):
    original = data.draw(laid_out(where.shape, dtype))
    mask = where.mask()
    # The same at every draw: a size of the slope that a finite gradient cannot overflow with.
    upstream = torch.linspace(-2.0, 2.0, max(math.prod(where.shape), 1), dtype=dtype)
    upstream = upstream[: math.prod(where.shape)].reshape(where.shape)
    with MODES[mode]():
        parametrization = VARIANTS[name](margin, infeasible="error", **where.options)
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
    entries = parametrization.entries(original).flatten().sort()[0]
    torch.testing.assert_close(entries, weight[mask].sort()[0], rtol=0, atol=0)
    assert_same_bits(again, weight)
    assert_same_bits(leaf.grad[~mask], upstream[~mask])
    assert leaf.grad.isfinite().all()
    assert inverse.isfinite().all()
    torch.testing.assert_close(found, weight, rtol=2 * torch.finfo(dtype).eps, atol=0)
