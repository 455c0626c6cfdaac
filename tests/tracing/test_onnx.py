"""Both ONNX exporters: the same numbers, and the map rather than its value."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.asserts import first, registered, sample, shifted
from tests.support.tables import NAMED, Layer, every_layer_once_every_map_somewhere

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration("onnxscript"),
    pytest.mark.filterwarnings("ignore"),
]
NAMES = (
    "linear",
    "linear_tall",
    "conv2d_groups",
    "conv2d_center",
    "transposed1d",
    "gru",
    "lstm",
    "raw",
    "raw_batch",
    "raw_vector",
)


def onnx_of(module: nn.Module, x: Tensor, dynamo: bool = False) -> bytes:
    module.eval()
    if dynamo:
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
        return program.model_proto.SerializeToString()
    buffer = io.BytesIO()
    torch.onnx.export(module, (x,), buffer, dynamo=False, verbose=False, do_constant_folding=False)
    return buffer.getvalue()


def run_onnx(model: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def with_shifted_original(model: bytes, name: str, shift: float) -> bytes:
    proto = onnx.load_from_string(model)
    (stored,) = [i for i in proto.graph.initializer if i.name.endswith(f"{name}.original")]
    value = onnx.numpy_helper.to_array(stored) + onnx.numpy_helper.to_array(stored).dtype.type(
        shift
    )
    stored.CopyFrom(onnx.numpy_helper.from_array(value, stored.name))
    return proto.SerializeToString()


def assert_computes_the_same(layer: Layer, map: Any, dynamo: bool) -> None:
    module, x = registered(layer, map, margin=0.25), sample(layer)
    model = onnx_of(module, x, dynamo)
    with torch.no_grad():
        expected = first(module(x))
    torch.testing.assert_close(run_onnx(model, x), expected, rtol=1e-4, atol=1e-5)


@every_layer_once_every_map_somewhere(*NAMES, somewhere=("linear",))
def test_onnx_computes_the_same(layer, map):
    assert_computes_the_same(layer, map, dynamo=False)


@every_layer_once_every_map_somewhere(
    "linear", "conv2d_center", "lstm", "raw_batch", maps=NAMED, somewhere=("linear",)
)
def test_onnx_by_dynamo_computes_the_same(layer, map):
    assert_computes_the_same(layer, map, dynamo=True)


@every_layer_once_every_map_somewhere(
    "linear", "conv2d_groups", "transposed1d", somewhere=("linear",)
)
def test_onnx_holds_the_map_and_not_its_value(layer, map):
    module, x = registered(layer, map), sample(layer)
    model = with_shifted_original(onnx_of(module, x), layer.tensor_name, 2.0)
    found = run_onnx(model, x)
    torch.testing.assert_close(found, shifted(layer, module, 2.0), rtol=1e-4, atol=1e-5)
