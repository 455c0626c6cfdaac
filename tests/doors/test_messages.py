"""Bad input: the error says what was expected and found, and the module stays as it was."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, ExpTransform, SigmoidTransform

from negdiag_param import NegativeDiagonal, NegExpDiagonal, register_negative_diagonal
from tests.support.modules import linear


def holding(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("weight", tensor)
    return module


class Unlike(NegativeDiagonal):
    def map(self, x: Tensor) -> Tensor:
        return -x.exp()

    def inverse(self, d: Tensor) -> Tensor:
        return d


BAD_REGISTRATIONS: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no module": (lambda: "layer", {}, TypeError, "expected an nn.Module, got str"),
    "name not a string": (linear, {"tensor_name": 3}, TypeError, "expected a string, got int"),
    "unknown name": (
        linear,
        {"tensor_name": "wieght"},
        ValueError,
        r"'wieght': expected the name of a parameter or buffer in Linear.*near names: weight",
    ),
    "unknown map": (
        linear,
        {"map": "expp"},
        ValueError,
        "one of smooth_abs, exp, softplus, square, sign_flip",
    ),
    "map of another kind": (linear, {"map": torch.exp}, TypeError, "NegativeDiagonal class"),
    "map with options of its own": (
        linear,
        {"map": NegExpDiagonal(0.5), "margin": 0.1},
        ValueError,
        r"its own options, got margin=0.1 beside NegExpDiagonal\(margin=0.5\)",
    ),
    "positive map": (
        linear,
        {"map": ExpTransform()},
        ValueError,
        "weight: expected a map from the reals to the negative numbers, got ExpTransform",
    ),
    "bounded map": (
        lambda: linear(-7.0),
        {"map": ComposeTransform([SigmoidTransform(), AffineTransform(0.0, -1.0)])},
        ValueError,
        "weight: expected a diagonal between -1 and .* got 3 of 3 entries beyond, from -7 to -7",
    ),
    "inverse of another map": (linear, {"map": Unlike}, ValueError, "inverse of Unlike"),
    "negative margin": (linear, {"margin": -0.1}, ValueError, "margin: .* got -0.1"),
    "NaN margin": (linear, {"margin": math.nan}, ValueError, "margin: .* got nan"),
    "infinite margin": (linear, {"margin": math.inf}, ValueError, "margin: .* got inf"),
    "margin of another type": (linear, {"margin": "1"}, TypeError, "a number, got str"),
    "large margin": (
        lambda: linear(dtype=torch.float16),
        {"margin": 7e4},
        ValueError,
        "weight: expected a margin that torch.float16 .* got margin=70000.0",
    ),
    "unknown taps": (linear, {"taps": "centre"}, ValueError, r"'all', 'center'\), got 'centre'"),
    "taps of a matrix": (
        linear,
        {"taps": "center"},
        ValueError,
        r"weight: expected kernel dimensions .* shape \(3, 3\), torch.float32",
    ),
    "taps between dilated ones": (
        lambda: nn.Conv1d(2, 2, 4, dilation=2, padding="same"),
        {"taps": "center"},
        ValueError,
        r"weight: expected an odd kernel size .* kernel_size=\(4,\), dilation=\(2,\)",
    ),
    "dims out of range": (linear, {"dims": (0, 2)}, ValueError, r"weight: .* got dims=\(0, 2\)"),
    "one dim twice": (linear, {"dims": (1, -1)}, ValueError, r"two different dims"),
    "three dims": (linear, {"dims": (0, 1, 2)}, ValueError, "dims: expected two dimensions"),
    "dims of another type": (linear, {"dims": "01"}, TypeError, "dims: expected a tuple"),
    "blocks do not divide": (
        linear,
        {"blocks": 2},
        ValueError,
        r"weight: expected blocks to divide the 3 rows .* got blocks=2; got shape \(3, 3\)",
    ),
    "no blocks": (linear, {"blocks": 0}, ValueError, "blocks: expected at least 1, got 0"),
    "blocks of another type": (linear, {"blocks": 1.5}, TypeError, "blocks: .* got float"),
    "blocks without rows": (linear, {"dims": (), "blocks": 3}, ValueError, "blocks=1"),
    "unknown policy": (linear, {"infeasible": "ignore"}, ValueError, "infeasible: .* 'ignore'"),
    "three dimensions": (
        lambda: nn.Bilinear(2, 2, 2),
        {},
        ValueError,
        r"weight: expected dims.* of 3 dimensions, got none; shape \(2, 2, 2\), torch.float32",
    ),
    "integers": (
        lambda: holding(torch.ones(2, 2, dtype=torch.int64)),
        {},
        TypeError,
        r"weight: expected float16.* got shape \(2, 2\), torch.int64",
    ),
    "booleans": (lambda: holding(torch.ones(2, 2) > 0), {}, TypeError, "torch.bool"),
    "complex": (lambda: holding(torch.ones(2, 2) * 1j), {}, TypeError, "torch.complex64"),
    "float8": (
        lambda: holding(torch.ones(2, 2).to(torch.float8_e4m3fn)),
        {},
        TypeError,
        "torch.float8_e4m3fn",
    ),
    "sparse": (
        lambda: holding(torch.eye(2).to_sparse()),
        {},
        TypeError,
        r"weight: expected a dense tensor, .* layout torch.sparse_coo",
    ),
    "quantized": (
        lambda: holding(torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8)),
        {},
        TypeError,
        "quantized",
    ),
    "uninitialized": (
        lambda: nn.LazyLinear(3),
        {},
        TypeError,
        "weight: expected an initialized tensor, got UninitializedParameter",
    ),
    "registered already": (
        lambda: register_negative_diagonal(linear()),
        {},
        ValueError,
        "weight: expected a tensor not registered",
    ),
    "NaN": (
        lambda: linear(math.nan),
        {},
        ValueError,
        r"weight: expected a finite diagonal, got 3 of 3 entries NaN or infinite",
    ),
    "infinity": (lambda: linear(-math.inf), {}, ValueError, "weight: expected a finite diagonal"),
    "infeasible": (
        lambda: linear(2.0),
        {"infeasible": "error"},
        ValueError,
        "weight: expected a diagonal negative, got 3 of 3 entries that are not, the largest 2",
    ),
    "above the margin": (
        linear,
        {"infeasible": "error", "margin": 1.5},
        ValueError,
        "weight: expected a diagonal below -1.5, got 3 of 3",
    ),
}


def state_of(module: nn.Module) -> tuple[Any, ...]:
    return (
        type(module),
        set(vars(module)),
        list(module._parameters),
        list(module._buffers),
        list(module._modules),
        list(module._load_state_dict_pre_hooks),
        {key: value.clone() for key, value in module.state_dict().items()},
    )


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*")
@pytest.mark.filterwarnings("ignore:.*quantized.*")
@pytest.mark.parametrize("case", BAD_REGISTRATIONS)
def test_a_refused_registration_says_why_and_changes_nothing(case):
    make, options, error, message = BAD_REGISTRATIONS[case]
    module = make()
    lazy = case == "uninitialized"
    before = state_of(module) if isinstance(module, nn.Module) and not lazy else None
    with pytest.raises(error, match=message):
        register_negative_diagonal(module, **options)
    if before is not None:
        after = state_of(module)
        assert after[:-1] == before[:-1]
        for key, value in before[-1].items():
            torch.testing.assert_close(after[-1][key], value, rtol=0, atol=0, equal_nan=True)
