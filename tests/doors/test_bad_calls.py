"""Calls that are wrong from the start say so at once."""

import pytest
import torch
from torch import nn

from negdiag_param import (
    NegExpDiagonal,
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
)
from tests.support.tables import BUILT_IN

MATRIX = torch.ones(2, 2)
BARE = {
    "list": ([[1.0]], TypeError, "weight: expected a tensor, got list"),
    "none": (None, TypeError, "weight: expected a tensor, got NoneType"),
    "integers": (MATRIX.int(), TypeError, r"weight: expected float16.* \(2, 2\), torch.int32"),
    "bool": (MATRIX.bool(), TypeError, r"weight: expected float16.* \(2, 2\), torch.bool"),
    "complex": (MATRIX.cfloat(), TypeError, r"weight: expected float16.* torch.complex64"),
    "sparse": (MATRIX.to_sparse(), TypeError, "weight: expected a dense tensor"),
}


@pytest.mark.parametrize("call", ["forward", "right_inverse", "entries"])
@pytest.mark.parametrize(("bad", "error", "message"), BARE.values(), ids=BARE)
def test_bare_classes_on_what_is_no_weight(bad, error, message, call):
    for cls in BUILT_IN.values():
        with pytest.raises(error, match=message):
            getattr(cls(), call)(bad)


UNFIT = {
    "dims": ({"dims": (0, 3)}, "expected dims within 2 dimensions"),
    "one dim twice": ({"dims": (0, 0)}, "two different dims"),
    "blocks": ({"blocks": 3}, "blocks to divide the 2 rows"),
    "taps": ({"taps": "center"}, "kernel dimensions"),
}


@pytest.mark.parametrize("call", ["forward", "right_inverse", "entries"])
@pytest.mark.parametrize(("options", "message"), UNFIT.values(), ids=UNFIT)
def test_bare_classes_whose_options_do_not_fit(options, message, call):
    with pytest.raises(ValueError, match=rf"weight: .*{message}.* \(2, 2\), torch.float32"):
        getattr(NegExpDiagonal(**options), call)(-MATRIX)


@pytest.mark.parametrize("call", ["map", "inverse"])
def test_scalar_maps_on_what_is_no_tensor(call):
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        getattr(NegExpDiagonal(), call)([1.0])
    with pytest.raises(TypeError, match=r"expected float16.* got torch.int64"):
        getattr(NegExpDiagonal(), call)(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("bad", [None, "x", 3, torch.ones(2)])
def test_functions_on_what_is_no_module(bad):
    for function in (plain_state_dict, negative_diagonals):
        with pytest.raises(TypeError, match=r"model: expected an nn.Module, got"):
            function(bad)


def test_what_is_no_initializer():
    layer = register_negative_diagonal(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="initializer: expected a callable, got str"):
        init_(layer, "weight", "zeros_")


def test_a_complex_plain_checkpoint():
    layer = register_negative_diagonal(nn.Linear(2, 2))
    before = layer.weight.clone()
    with pytest.raises(RuntimeError, match=r"weight: expected real numbers, .* torch.complex64"):
        layer.load_state_dict({"weight": -MATRIX.cfloat(), "bias": torch.ones(2)})
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients(cls):
    with pytest.raises(ValueError, match=r"weight: .*sparse=True\); make it with sparse=False"):
        register_negative_diagonal(cls(3, 3, sparse=True))
    register_negative_diagonal(cls(3, 3))


def test_scripting():
    model = register_negative_diagonal(nn.Sequential(nn.Linear(2, 2)), "0.weight")
    with pytest.raises(TypeError, match="script a baked copy"):
        torch.jit.script(model)


@pytest.mark.parametrize("grad", [True, False])
def test_functional_call_with_the_plain_key(grad):
    layer = register_negative_diagonal(nn.Linear(2, 2))
    before = layer.weight.clone()
    for module, prefix in ((layer, ""), (nn.Sequential(layer), "0.")):
        with pytest.raises(RuntimeError, match=r"the key parametrizations\.weight\.original"):
            torch.func.functional_call(
                module, {f"{prefix}weight": torch.zeros(2, 2, requires_grad=grad)}, (MATRIX,)
            )
    assert torch.equal(layer.weight, before)
