"""Traps of exporting and of function transforms."""

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.traps.naive import Naive, feasible, naive


@pytest.mark.slow
@pytest.mark.integration("onnx", "onnxruntime")
def test_the_legacy_onnx_exporter_drops_the_map():
    """Trap: an in-place write to the diagonal is not in the exported graph."""
    import onnxruntime

    def exported_diagonal(layer: nn.Module) -> Tensor:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                layer, (torch.eye(4),), buffer, dynamo=False, input_names=["x"], verbose=False
            )
        session = onnxruntime.InferenceSession(buffer.getvalue())
        (output,) = session.run(None, {"x": torch.eye(4).numpy()})
        return (torch.from_numpy(output) - layer.bias.detach()).diagonal()

    layer, ours = feasible(), feasible()
    expected = layer.weight.detach().diagonal().clone()
    assert not exported_diagonal(naive(layer)).allclose(expected)
    torch.testing.assert_close(exported_diagonal(register_negative_diagonal(ours)), expected)


def test_a_masked_map_has_nan_gradients():
    """Trap: ``where(eye, f(original), original)`` gives NaN where ``f`` overflows off the mask."""

    class Masked(Naive):
        def forward(self, original: Tensor) -> Tensor:
            return torch.where(torch.eye(4).bool(), -original.exp(), original)

    def trained(layer: nn.Module, exporting: bool) -> Tensor:
        with torch.no_grad():
            layer.parametrizations.weight.original[0, 1] = 200.0
        if exporting:
            layer = torch.export.export(layer, (torch.eye(4),)).module()
        layer(torch.eye(4)).sum().backward()
        return layer.parametrizations.weight.original.grad

    assert trained(naive(feasible(), Masked), False)[0, 1].isnan()
    for exporting in (False, True):
        grad = trained(register_negative_diagonal(feasible()), exporting)
        assert grad.isfinite().all()


def test_functional_call_needs_the_key_of_the_original():
    """Trap: ``functional_call`` takes the plain name for an assignment, and fails obscurely."""

    def gradient(layer: nn.Module, key: str) -> Tensor:
        def loss(tensor: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {key: tensor}, (torch.eye(4),)).sum()

        return torch.func.grad(loss)(-torch.eye(4))

    key = "parametrizations.weight.original"
    with pytest.raises(RuntimeError, match="rewrite the function being transformed"):
        gradient(naive(feasible()), "weight")
    ours = register_negative_diagonal(feasible(), map="exp")
    before = ours.weight.clone()
    with pytest.raises(RuntimeError, match=key):
        gradient(ours, "weight")
    expected = torch.ones(4, 4) - (1 + torch.tensor(-1.0).exp()) * torch.eye(4)
    torch.testing.assert_close(gradient(ours, key), expected)
    assert torch.equal(ours.weight, before)
