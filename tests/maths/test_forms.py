"""Eager, without gradients, transformed and traced: one operation."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.asserts import assert_same_bits
from tests.support.tables import (
    BUILT_IN,
    VARIANTS,
    every_dtype,
    every_margin,
    extremes,
    with_diagonal,
)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_dtype
@every_margin
@pytest.mark.parametrize("name", VARIANTS)
def test_all_forms_of_the_operation_agree_on_values_and_slopes(name, margin, dtype):
    parametrization = VARIANTS[name](margin)
    original = with_diagonal(extremes(dtype))
    grad = torch.randn(original.shape).to(dtype)
    leaf = original.clone().requires_grad_()
    eager = parametrization(leaf)
    eager.backward(grad)
    transformed, vjp = torch.func.vjp(parametrization, original)
    assert_same_bits(transformed, eager)
    torch.testing.assert_close(vjp(grad)[0], leaf.grad)
    _, tangent = torch.func.jvp(parametrization, (original,), (grad,))
    torch.testing.assert_close(tangent, leaf.grad)
    with torch.no_grad():
        assert_same_bits(parametrization(leaf), eager)
    traced = torch.jit.trace(parametrization, (original,), check_trace=False)
    assert_same_bits(traced(original), eager)
    entries = parametrization.entries(original)
    torch.testing.assert_close(entries, eager.diagonal(), rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_exported_form_agrees_too(name):
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parametrization = VARIANTS[name](0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.parametrization(x)

    original = with_diagonal(extremes(torch.float32))
    exported = torch.export.export(Only(), (original,)).module()
    found, expected = exported(original), VARIANTS[name](0.1)(original)
    if name in BUILT_IN:
        assert_same_bits(found, expected)
    torch.testing.assert_close(found, expected)  # exporters have another softplus
