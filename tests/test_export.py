"""Exported, traced and compiled models keep the map: another original still comes out negative."""

import io
import shutil
import warnings
from collections.abc import Callable

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.cases import BUILT_IN, LAYERS, MAPS, Layer
from tests.living import original_of, registered, weight_of

NAMES = [
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
]
pytestmark = pytest.mark.filterwarnings("ignore")
Exporter = Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]


def sample(layer: Layer) -> Tensor:
    return torch.randn(layer.input_shape, generator=torch.Generator().manual_seed(7))


def first(output):
    return output[0] if isinstance(output, (tuple, list)) else output


def shifted(layer: Layer, module: nn.Module, shift: float) -> Tensor:
    """The output after the original has moved by ``shift``, in place and back."""
    with torch.no_grad():
        original_of(layer, module).add_(shift)
        output = first(module(sample(layer)))
        original_of(layer, module).sub_(shift)
    return output


@pytest.mark.parametrize(
    ("name", "map", "strict"),
    # Strict export is slow, and a matter of the layer only.
    [(name, map_, False) for name in NAMES for map_ in MAPS]
    + [(name, "exp", True) for name in NAMES if name not in ("gru", "lstm")],
)
def test_export_keeps_the_map(name, map, strict):
    layer = LAYERS[name]
    module, x = registered(layer, MAPS[map]), sample(layer)
    exported = torch.export.export(module, (x,), strict=strict)
    again = exported.module()
    torch.testing.assert_close(first(again(x)), first(module(x)))
    key = f"parametrizations.{layer.tensor_name}.original"
    assert key in exported.state_dict
    expected = shifted(layer, module, 2.0)
    with torch.no_grad():
        again.get_parameter(key).add_(2.0)
        torch.testing.assert_close(first(again(x)), expected)


def test_export_does_not_leave_the_module_changed():
    module = register_negative_diagonal(nn.Linear(4, 4))
    torch.export.export(module, (torch.eye(4),))
    module(torch.eye(4)).sum().backward()
    assert module.parametrizations.weight.original.grad is not None


def test_an_exported_model_trains():
    module = register_negative_diagonal(nn.Linear(4, 4))
    again = torch.export.export(module, (torch.eye(4),)).module()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        (again(torch.eye(4)) - 5).square().sum().backward()
        optimizer.step()
    found = again(torch.eye(4)) - again.bias
    assert (found.diagonal() < 0).all()


def onnx_of(module: nn.Module, x: Tensor, dynamo: bool) -> bytes:
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


@pytest.mark.parametrize(
    ("name", "map", "dynamo"),
    [(name, map_, False) for name in NAMES for map_ in BUILT_IN]
    + [(name, "exp", True) for name in NAMES]
    + [("linear", map_, True) for map_ in BUILT_IN if map_ != "exp"],
)
def test_onnx_computes_the_same(name, map, dynamo):
    layer = LAYERS[name]
    module, x = registered(layer, map, margin=0.25), sample(layer)
    model = onnx_of(module, x, dynamo)
    with torch.no_grad():
        expected = first(module(x))
    torch.testing.assert_close(run_onnx(model, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("name", ["linear", "conv2d_groups", "transposed1d"])
def test_onnx_holds_the_map_and_not_its_value(name, map):
    layer = LAYERS[name]
    module, x = registered(layer, MAPS[map]), sample(layer)
    model = with_shifted_original(onnx_of(module, x, dynamo=False), layer.tensor_name, 2.0)
    found = run_onnx(model, x)
    torch.testing.assert_close(found, shifted(layer, module, 2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("name", NAMES)
def test_tracing_keeps_the_map(name, map):
    layer = LAYERS[name]
    module, x = registered(layer, MAPS[map]), sample(layer)
    traced = torch.jit.trace(module, (x,), check_trace=False)
    torch.testing.assert_close(first(traced(x)), first(module(x)))
    expected = shifted(layer, module, 2.0)
    with torch.no_grad():
        original_of(layer, module).add_(2.0)
        torch.testing.assert_close(first(traced(x)), expected)


class Custom(nn.Module):
    """Reads a raw registered parameter in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.matrix


@pytest.mark.parametrize("map", MAPS)
def test_symbolic_tracing_keeps_the_map(map):
    module = register_negative_diagonal(Custom(), "matrix", map=MAPS[map])
    register_negative_diagonal(module, "inner.weight", map=MAPS[map])
    traced = torch.fx.symbolic_trace(module)
    x = torch.randn(2, 4)
    torch.testing.assert_close(traced(x), module(x))
    with torch.no_grad():
        module.parametrizations.matrix.original.add_(2.0)
        module.inner.parametrizations.weight.original.add_(2.0)
    torch.testing.assert_close(traced(x), module(x))
    traced(x).sum().backward()
    assert module.parametrizations.matrix.original.grad.diagonal().count_nonzero() == 4


@pytest.mark.parametrize("name", ["linear", "conv2d_groups", "lstm"])
def test_compiled_in_one_graph_it_trains_as_before(name):
    layer = LAYERS[name]
    module, x = registered(layer, "exp"), sample(layer)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=name != "lstm")
    torch.testing.assert_close(first(compiled(x)), first(module(x)))
    grads = []
    for run in (module, compiled):
        module.zero_grad()
        first(run(x)).square().sum().backward()
        grads.append(original_of(layer, module).grad)
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        original_of(layer, module).add_(2.0)
    torch.testing.assert_close(first(compiled(x)), first(module(x)))
    assert (layer.diagonal(weight_of(layer, module)) < 0).all()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_aot_inductor_keeps_the_map(tmp_path):
    module = register_negative_diagonal(nn.Conv1d(4, 4, 3, groups=2))
    x = torch.randn(1, 4, 6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (x,))
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        found = torch._inductor.aoti_load_package(package)(x)
        torch.testing.assert_close(found, module(x))
