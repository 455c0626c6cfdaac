"""One operation, whatever runs it: eager, without gradients, transformed, traced or exported."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import NegSoftplusDiagonal
from tests.support.asserts import assert_only_diagonal_differs, assert_same_bits
from tests.support.tables import MARGINS, VARIANTS, every_dtype, extremes, originals, with_diagonal


class Variants(nn.Module):
    """Every map with and without a margin, each on a matrix of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        pairs = [*product(VARIANTS, MARGINS[:2])]
        self.names = [name for name, _ in pairs]
        self.maps = nn.ModuleList(VARIANTS[name](margin) for name, margin in pairs)
        diagonal = torch.cat([extremes(dtype), torch.linspace(-100, 90, 77).to(dtype)])
        self.originals = with_diagonal(diagonal).expand(len(pairs), -1, -1).contiguous()

    def forward(self, originals: Tensor) -> Tensor:
        return torch.stack([make(one) for make, one in zip(self.maps, originals, strict=True)])


# The values, and what takes upstream gradients to those of the originals.
Ran = tuple[Tensor, Callable[[Tensor], Tensor]]


def run(model: Variants, call: Callable[[Tensor], Tensor], create_graph: bool = False) -> Ran:
    leaf = model.originals.clone().requires_grad_()
    values = call(leaf)

    def gradient(upstream: Tensor) -> Tensor:
        options = {"retain_graph": True, "create_graph": create_graph}
        return torch.autograd.grad(values, leaf, upstream, **options)[0].detach()

    return values.detach(), gradient


def eager(model: Variants) -> Ran:
    return run(model, model)


def without_gradients(model: Variants) -> Ran:
    return torch.no_grad()(model)(model.originals.clone().requires_grad_()), eager(model)[1]


def pulled_back(model: Variants) -> Ran:
    values, pull = torch.func.vjp(model, model.originals)
    return values, lambda upstream: pull(upstream)[0]


def pushed_forward(model: Variants) -> Ran:
    def push(tangent: Tensor) -> Tensor:
        return torch.func.jvp(model, (model.originals,), (tangent,))[1]

    return model(model.originals), push  # each value depends on one original


def traced(model: Variants) -> Ran:
    trace = torch.jit.trace(model, (model.originals,), check_trace=False)
    return trace(model.originals), eager(model)[1]  # of a trace, only the values are promised


def exported(model: Variants) -> Ran:
    example = model.originals.clone().requires_grad_()
    return run(model, torch.export.export(model, (example,), strict=False).module())


FORMS: dict[str, Callable[[Variants], Ran]] = {
    "differentiated twice": lambda model: run(model, model, create_graph=True),
    "without gradients": without_gradients,
    "pulled back": pulled_back,
    "pushed forward": pushed_forward,
    "mapped over a batch": lambda m: run(m, lambda x: torch.func.vmap(m)(x[None])[0]),
    "traced": traced,
    "exported": exported,
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_dtype
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_eager_mode(form, dtype):
    model, info = Variants(dtype), torch.finfo(dtype)
    (expected, expected_gradient), (values, gradient) = eager(model), FORMS[form](model)
    for name, found, value, original in zip(
        model.names, values, expected, model.originals, strict=True
    ):
        assert_only_diagonal_differs(found, original, Tensor.diagonal)
        if form == "exported" and name.startswith("softplus"):  # exporters have another softplus
            torch.testing.assert_close(found, value)
        else:
            assert_same_bits(found, value)
    for size in (1.0, -1.0, 1e4 if dtype == torch.float16 else 1e30, info.max / 1024, info.tiny):
        upstream = torch.full_like(expected, size)
        assert not expected_gradient(upstream).isnan().any()
        # The slope of exp has the roundings of an original of 709, that of a corner those of 1.
        torch.testing.assert_close(
            gradient(upstream),
            expected_gradient(upstream),
            rtol=(1024 if dtype.itemsize > 2 else 4) * info.eps,
            atol=4 * info.eps * abs(size) + info.tiny,
            msg=lambda text, size=size: f"upstream {size:g}: {text}",
        )


@every_dtype
@pytest.mark.parametrize("name", [*VARIANTS, "softplus, nearly straight"])
def test_entries_and_vmap_agree_on_every_original(name, dtype):
    make = VARIANTS.get(name, partial(NegSoftplusDiagonal, beta=1e-5))
    parametrization, original = make(0.1, dims=()), originals(dtype)
    expected = parametrization(original)
    assert_same_bits(parametrization.entries(original), expected)
    assert_same_bits(torch.vmap(parametrization)(original[:, None]).flatten(), expected)
