"""One gradient, whatever takes it: eager, twice, torch.func, compiled and exported."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.tables import VARIANTS, every_dtype, extremes


class Variants(nn.Module):
    """Every map with a margin, on the same originals."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.maps = nn.ModuleList(make(0.1, dims=()) for make in VARIANTS.values())
        originals = [*extremes(dtype), *(torch.linspace(-100, 90, 77).to(dtype))]
        self.original = nn.Parameter(torch.stack(originals).repeat(len(self.maps), 1))

    def forward(self) -> Tensor:
        return self.mapped(self.original)

    def mapped(self, original: Tensor) -> Tensor:
        return torch.stack([make(row) for make, row in zip(self.maps, original, strict=True)])


def upstreams(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    return [1.0, -1.0, 1e4 if dtype == torch.float16 else 1e30, info.max / 1024, info.tiny]


def eager(model: Variants, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(model(), model.original, upstream)[0]


def twice(model: Variants, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(model(), model.original, upstream, create_graph=True)[0].detach()


def pulled_back(model: Variants, upstream: Tensor) -> Tensor:
    return torch.func.vjp(model.mapped, model.original.detach())[1](upstream)[0]


def pushed_forward(model: Variants, upstream: Tensor) -> Tensor:
    return torch.func.jvp(model.mapped, (model.original.detach(),), (upstream,))[1]


def exported(model: Variants) -> Callable[[Variants, Tensor], Tensor]:
    program = torch.export.export(model, (), strict=False).module()
    (original,) = program.parameters()
    return lambda _, upstream: torch.autograd.grad(program(), original, upstream)[0]


def compiled(model: Variants) -> Callable[[Variants, Tensor], Tensor]:
    torch.compiler.reset()
    function = torch.compile(model, fullgraph=True)
    return lambda _, upstream: torch.autograd.grad(function(), model.original, upstream)[0]


def assert_same_gradients(
    form: Callable[[Variants, Tensor], Tensor], model: Variants, dtype: torch.dtype
) -> None:
    eps = torch.finfo(dtype).eps
    for size in upstreams(dtype):
        upstream = torch.full_like(model.original, size)
        expected = eager(model, upstream)
        assert not expected.isnan().any()
        # The slope of exp has the roundings of an original of 709, that of a corner those of 1.
        torch.testing.assert_close(
            form(model, upstream),
            expected,
            rtol=1024 * eps if dtype.itemsize > 2 else 4 * eps,
            atol=4 * eps * abs(size) + torch.finfo(dtype).tiny,
            msg=lambda text, size=size: f"upstream {size:g}: {text}",
        )


@every_dtype
@pytest.mark.parametrize("form", [twice, pulled_back, pushed_forward])
def test_transformed_gradients_are_the_eager_ones(form, dtype):
    assert_same_gradients(form, Variants(dtype), dtype)


@every_dtype
def test_exported_gradients_are_the_eager_ones(dtype):
    model = Variants(dtype)
    assert_same_gradients(exported(model), model, dtype)


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones():
    model = Variants(torch.float32)
    assert_same_gradients(compiled(model), model, torch.float32)
