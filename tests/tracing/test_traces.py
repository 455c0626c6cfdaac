"""Traces and exports hold the map, not its value: another original comes out negative too."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_negative, first, parametrization_of, registered, sample
from tests.support.modules import Half
from tests.support.tables import BUILT_IN, LAYERS, LEADING, MAPS, NAMED, Layer, grouped
from tests.support.versions import NEEDS_COMPILER

pytestmark = pytest.mark.filterwarnings("ignore")
# Runs what was traced, with all originals moved by a number.
Run = Callable[[Tensor, float], Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """Older compilers count strict exports among the traces of which there may be so many."""
    torch.compiler.reset()


def running(call: Callable[[Tensor], object], module: nn.Module) -> Run:
    (original,) = (p for name, p in module.named_parameters() if name.endswith(".original"))

    def run(x: Tensor, shift: float) -> Tensor:
        with torch.no_grad():
            original.add_(shift)
            output = first(call(x))
            original.sub_(shift)
        return output

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
    import onnxruntime

    buffer = io.BytesIO()
    options = {} if dynamo else {"do_constant_folding": False}
    torch.onnx.export(module.eval(), (x,), buffer, dynamo=dynamo, verbose=False, **options)
    model = onnx.load_from_string(buffer.getvalue())

    def run(x: Tensor, shift: float) -> Tensor:
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
CENTER = Layer(
    lambda: nn.Conv1d(4, 4, 3, padding="same"),
    lambda weight: grouped(1)(weight)[:, 1],
    (1, 4, 6),
    options={"taps": "center"},
)
DOMINANT = {
    f"{name}, {kind}": replace(layer, options={**layer.options, "dominance": kind})
    for kind in ("rows", "columns", "scaled")
    for name, layer in (("linear", LAYERS["linear"]), ("conv1d_center", CENTER))
}


def cases() -> Iterator[object]:
    """Every tracer with layers of every kind and, on one layer, with every map."""
    names = ("linear", "conv2d_center", "lstm", "raw_batch", "raw_vector", *DOMINANT)
    slow = pytest.mark.slow
    with_packages = [slow, pytest.mark.integration("onnx", "onnxruntime", "onnxscript")]
    for label, tracer, layers, maps, marks in (
        ("jit", jit, names, MAPS, ()),
        ("fx", fx, ("linear", "raw"), MAPS, ()),
        ("export", export, names, MAPS, ()),
        (
            "strict export",
            strict_export,
            ("linear", "conv2d_center", "raw_batch", "raw_vector"),
            {},
            slow,
        ),
        ("onnx", onnx, names, MAPS, with_packages),
        ("onnx by dynamo", onnx_by_dynamo, names, NAMED, with_packages),
    ):
        pairs = [(name, LEADING) for name in layers]
        pairs += [("linear", kind) for kind in maps if kind != LEADING]
        for name, kind in pairs:
            case = (tracer, (LAYERS | DOMINANT)[name], MAPS[kind])
            yield pytest.param(*case, id=f"{label}-{name}-{kind}", marks=marks)


def scramble(parametrization: nn.Module) -> None:
    """So that a scaling is none of ones."""
    torch.manual_seed(0)
    for scaling in parametrization.parameters():
        nn.init.normal_(scaling, std=0.1)


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
    scramble(parametrization_of(layer, module))
    if tracer is export and isinstance(module, nn.RNNBase) and not is_taken(nn.LSTM):
        pytest.skip("this PyTorch exports no parametrized LSTM, except strictly")
    run = tracer(module, x)
    for shift in (0.0, 2.0) if tracer is not onnx_by_dynamo else (0.0,):
        expected = running(module, module)(x, shift)
        torch.testing.assert_close(run(x, shift), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, *({"map": "softplus", "dominance": kind} for kind in ("rows", "columns", "scaled"))],
    ids=str,
)
def test_an_exported_model_trains_as_its_source_does(options, strict):
    module, x = register_negative_diagonal(nn.Linear(4, 4, bias=False), **options), torch.eye(4)
    scramble(module.parametrizations.weight[0])
    again = torch.export.export(module, (x,), strict=strict).module()
    names = dict(module.named_parameters())
    expected, found = (
        torch.autograd.grad(model(x).square().sum(), [*map(model.get_parameter, names)])
        for model in (module, again)
    )
    torch.testing.assert_close(found, expected)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        (again(x) - 5).square().sum().backward()
        optimizer.step()
    assert_negative(again(x).diagonal())


@pytest.mark.parametrize("trace", ["export", "jit"])
@pytest.mark.parametrize("map", BUILT_IN)
def test_what_was_frozen_while_it_was_traced_trains_as_in_eager_mode(map, trace):
    module = register_negative_diagonal(nn.Linear(4, 4, bias=False), map=map)
    original = module.parametrizations.weight.original.requires_grad_(False)
    # At the corners of the maps, beyond the bound, and where the value overflows.
    original.diagonal().copy_(torch.tensor([0.0, -1.0, 2.0, 100.0]))
    if trace == "export":
        again = torch.export.export(module, (torch.eye(4),)).module()
    else:
        again = torch.jit.trace(module, (torch.eye(4),), check_trace=False)
    gradients = []
    for model in (module, again):
        (parameter,) = model.parameters()
        parameter.requires_grad_().grad = None
        model(torch.eye(4)).sum().backward()
        gradients.append(parameter.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


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
