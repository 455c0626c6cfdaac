"""What a row of bad input is."""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from tests.support.modules import linear


class Bad(NamedTuple):
    """What is made, what is done with it, and the error: exactly its type and its message.

    Three dots in the message stand for anything.
    """

    make: Callable[[], Any]
    call: Callable[[Any], object]
    error: type[Exception]
    message: str

    def fits(self, message: str) -> bool:
        pattern = re.escape(self.message).replace(r"\.\.\.", ".*")
        return re.fullmatch(pattern, message, re.DOTALL) is not None


Table = dict[str, Bad]


def quietly(make: Callable[[], Any]) -> Any:
    """Without what PyTorch says of features that it has not finished or is giving up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def holding(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    if isinstance(tensor, nn.Parameter):
        module.weight = tensor
    else:
        module.register_buffer("weight", tensor)
    return module


def registered(**options: Any) -> nn.Module:
    return register_negative_diagonal(linear(-2.0), **{"map": "exp", **options})


ONES = torch.ones(3, 3)
MATRIX = "shape (3, 3), torch.float32"
KINDS = {"none": None, "a string": "layer", "a number": 3, "a list": [nn.Linear(2, 2)]}
# Tensors that have no diagonal of real numbers, and what is said of them.
NOT_DENSE: dict[str, tuple[Tensor, str]] = {
    "sparse": (ONES.to_sparse(), f"{MATRIX}, layout torch.sparse_coo"),
    "compressed rows": (quietly(ONES.to_sparse_csr), f"{MATRIX}, layout torch.sparse_csr"),
    "compressed columns": (quietly(ONES.to_sparse_csc), f"{MATRIX}, layout torch.sparse_csc"),
    "mkldnn": (ONES.to_mkldnn(), f"{MATRIX}, layout torch._mkldnn"),
    "quantized": (
        quietly(lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)),
        "shape (3, 3), torch.qint8, layout torch.strided (quantized)",
    ),
    "nested": (
        quietly(lambda: torch.nested.nested_tensor([ONES, ONES])),
        "a nested one, torch.float32",
    ),
    "jagged": (
        quietly(lambda: torch.nested.nested_tensor([ONES, ONES], layout=torch.jagged)),
        "a nested one, torch.float32",
    ),
}
NOT_FLOATING: dict[str, torch.dtype] = {
    "bytes": torch.uint8,
    "integers": torch.int32,
    "long integers": torch.int64,
    "truth values": torch.bool,
    "complex numbers": torch.complex64,
    "complex halves": torch.complex32,
    "float8": torch.float8_e4m3fn,
}
FLOATING = "float16, bfloat16, float32 or float64"
