"""Traces and exports hold the map, not its value: another original comes out negative too."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative, first, registered, sample, shifted
from tests.support.modules import Half
from tests.support.tables import LAYERS, LEADING, MAPS, NAMED, Layer
from tests.support.versions import NEEDS_COMPILER

pytestmark = pytest.mark.filterwarnings("ignore")
# Runs what was traced, with all originals moved by a number.
Run = Callable[[Tensor, float], Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """Older compilers count strict exports among the traces of which there may be so many."""
    torch.compiler.reset()


@contextmanager
def moved(parameters: dict[str, Tensor], shift: float) -> Iterator[None]:
    originals = [p for name, p in parameters.items() if name.endswith(".original")]
    assert originals
    with torch.no_grad():
        for original in originals:
            original.add_(shift)
        yield
        for original in originals:
            original.sub_(shift)


def running(call: Callable[[Tensor], object], module: nn.Module) -> Run:
    def run(x: Tensor, shift: float) -> Tensor:
        with moved(dict(module.named_parameters()), shift):
            return first(call(x))

    return run


def jit(module: nn.Module, x: Tensor) -> Run:
    return running(torch.jit.trace(module, (x,), check_trace=False), module)


def fx(module: nn.Module, x: Tensor) -> Run:
    return running(torch.fx.symbolic_trace(module), module)


def export(module: nn.Module, x: Tensor, strict: bool = False) -> Run:
    again = torch.export.export(module, (x,), strict=strict).module()
    return running(again, again)


def onnx(module: nn.Module, x: Tensor, dynamo: bool = False) -> Run:
    import onnx

    buffer = io.BytesIO()
    if dynamo:
        program = torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False)
        buffer.write(program.model_proto.SerializeToString())
    else:
        torch.onnx.export(
            module.eval(), (x,), buffer, dynamo=False, verbose=False, do_constant_folding=False
        )
    model = onnx.load_from_string(buffer.getvalue())

    def run(x: Tensor, shift: float) -> Tensor:
        import onnxruntime

        other = onnx.ModelProto()
        other.CopyFrom(model)
        for stored in other.graph.initializer:
            if stored.name.endswith(".original"):
                value = onnx.numpy_helper.to_array(stored)
                value = value + value.dtype.type(shift)
                stored.CopyFrom(onnx.numpy_helper.from_array(value, stored.name))
        session = onnxruntime.InferenceSession(
            other.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])

    return run


strict_export = partial(export, strict=True)
onnx_by_dynamo = partial(onnx, dynamo=True)  # which computes what does not depend on the input
TRACERS = {
    "jit": jit,
    "fx": fx,
    "export": export,
    "strict export": strict_export,
    "onnx": onnx,
    "onnx by dynamo": onnx_by_dynamo,
}


def cases() -> Iterator[object]:
    """Every tracer with layers of every kind and, on one layer, with every map."""
    names = ("linear", "conv2d_center", "lstm", "raw_batch", "raw_vector")
    slow = pytest.mark.slow
    with_packages = [slow, pytest.mark.integration("onnx", "onnxruntime", "onnxscript")]
    for label, layers, maps, marks in (
        ("jit", names, MAPS, ()),
        ("fx", ("linear", "raw"), MAPS, ()),
        ("export", names, MAPS, ()),
        ("strict export", [name for name in names if name != "lstm"], {}, slow),
        ("onnx", names, MAPS, with_packages),
        ("onnx by dynamo", names, NAMED, with_packages),
    ):
        pairs = [(name, LEADING) for name in layers]
        pairs += [("linear", kind) for kind in maps if kind != LEADING]
        for name, kind in pairs:
            case = (TRACERS[label], LAYERS[name], MAPS[kind])
            yield pytest.param(*case, id=f"{label}-{name}-{kind}", marks=marks)


@lru_cache
def is_taken(kind: type[nn.RNNBase]) -> bool:
    """Whether this PyTorch exports recurrent layers with any parametrization."""
    stock = kind(3, 4)
    parametrize.register_parametrization(stock, "weight_hh_l0", Half())
    try:
        torch.export.export(stock, (torch.ones(2, 1, 3),), strict=False)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("tracer", "layer", "map"), list(cases()))
def test_a_trace_holds_the_map(tracer: Callable[[nn.Module, Tensor], Run], layer: Layer, map):
    module, x = registered(layer, map, margin=0.25), sample(layer)
    if tracer is export and isinstance(module, nn.RNNBase) and not is_taken(nn.LSTM):
        pytest.skip("this PyTorch exports no parametrized LSTM, except strictly")
    run = tracer(module, x)
    for shift in (0.0, 2.0) if tracer is not onnx_by_dynamo else (0.0,):
        expected = shifted(layer, module, shift)
        torch.testing.assert_close(run(x, shift), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_trains_and_leaves_its_source_as_it_was(strict):
    module = register_negative_diagonal(nn.Linear(4, 4, bias=False))
    again = torch.export.export(module, (torch.eye(4),), strict=strict).module()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        (again(torch.eye(4)) - 5).square().sum().backward()
        optimizer.step()
    assert_negative(again(torch.eye(4)).diagonal())
    module.zero_grad()
    module(torch.eye(4)).sum().backward()
    assert module.parametrizations.weight.original.grad is not None


@pytest.mark.slow
@pytest.mark.integration
@NEEDS_COMPILER
def test_aot_inductor_keeps_the_map(tmp_path):
    module = register_negative_diagonal(nn.Conv1d(4, 4, 3, groups=2))
    x = torch.randn(1, 4, 6)
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), module(x))
