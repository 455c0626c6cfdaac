"""A tensor in the life of a module, with what should be true of it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import negdiag_param
from tests.support.asserts import assert_only_diagonal_differs, assert_same_bits
from tests.support.tables import LAYERS, Layer

PAIR = replace(LAYERS["linear"], make=lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
KINDS: dict[str, list[Layer]] = {
    "linear": [LAYERS["linear"]],
    "grouped convolution": [LAYERS["conv2d_groups"]],
    "recurrent": [replace(LAYERS["gru"], tensor_name=f"weight_hh_l{i}") for i in (0, 1)],
    "raw": [LAYERS[name] for name in ("raw", "raw_batch", "raw_vector", "raw_buffer")],
    "container": [replace(PAIR, tensor_name=f"{i}.weight") for i in (0, 1)],
}
# What the helper infers.
INFERRED = {"grouped convolution": {"blocks": 2}, "recurrent": {"blocks": 3}}
FORMULAS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clamp": lambda x, margin: x.clamp(max=-margin),
    "exp": lambda x, margin: -(margin + x.exp()),
    "softplus": lambda x, margin: -(margin + F.softplus(x)),
    "square": lambda x, margin: -(margin + x.abs() * (x.abs() + 0.01)),
    "sign_flip": lambda x, margin: -(margin + (x + margin).abs()),
    "subclass": lambda x, margin: -(margin + x.square() + 1e-6),
    "transform": lambda x, margin: -(margin + F.softplus(x)),
}
# What keeps its result, so that the lines it runs depend on the lives before.
ONCE = ("own_class", "_install", "_warn_once", "watch")
PACKAGE = str(Path(negdiag_param.__file__).parent)


@dataclass
class Slot:
    """A tensor of a module, and what should be true of it."""

    layer: Layer
    value: Tensor
    map: str = ""  # of its registration, if any
    margin: float = 0.0
    infeasible: str = "warn"
    normed: bool = False  # weight_norm, before ours
    halves: int = 0  # stock parametrizations, after ours

    @property
    def name(self) -> str:
        return self.layer.tensor_name

    @property
    def path(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_parameter(self) -> bool:
        return self.name != "constant"

    @property
    def is_parametrized(self) -> bool:
        return bool(self.map) or self.normed

    def drawn(self, kind: str, number: int) -> Tensor:
        """A value, most of them with a diagonal of some kind."""
        generator = torch.Generator().manual_seed(number)
        value = torch.randn(self.value.shape, generator=generator).to(self.value.dtype)
        d = self.layer.diagonal(value)
        if kind == "feasible":
            d.copy_(-d.abs() - 0.6)
        elif kind in ("zero", "nan"):
            d.fill_(0.0 if kind == "zero" else torch.nan)
        return value[1:] if kind == "shape" else value.bfloat16() if kind == "dtype" else value

    def is_refused(self, value: Tensor) -> bool:
        return self.infeasible == "error" and not self._is_feasible(value).all()

    def reflected(self, value: Tensor) -> Tensor:
        """What ``value`` becomes when it is assigned."""
        value = value.detach().clone()
        if self.map:
            d = self.layer.diagonal(value).double() * 2**self.halves
            mirrored = torch.where(d.abs() > self.margin, -d.abs(), -self.margin - 1e-3)
            d = torch.where(self._is_feasible(value), d, mirrored)
            self.layer.diagonal(value).copy_(d / 2**self.halves)
        return value

    def check_diagonal(self) -> None:
        """Holds the diagonal of the value against the margin."""
        if self.map:
            d = self.layer.diagonal(self.value).double()
            assert d.isfinite().all()
            assert (d <= -self.margin / 2**self.halves).all()
            assert self.halves or (d < 0).all()

    def check(self, originals: list[Tensor], value: Tensor) -> None:
        """Holds ``value`` against what the formulas make of ``originals``."""
        x, *others = originals
        x = torch._weight_norm(others[0], x) if self.normed else x
        if self.map:
            where, info = self.layer.diagonal, torch.finfo(x.dtype)
            expected = FORMULAS[self.map](where(x).double(), self.margin)
            error = (where(value).double() * 2**self.halves - expected).abs()
            allowed = 64 * info.eps * (expected.abs() + self.margin) + 2**self.halves * info.tiny
            assert ((error <= 4 * allowed) | (where(x).abs() > 20)).all(), (self, x, value)
            assert_only_diagonal_differs(value, x / 2**self.halves, where)
        else:
            assert_same_bits(value, x)

    def _is_feasible(self, value: Tensor) -> Tensor:
        d = self.layer.diagonal(value).double() * 2**self.halves
        return d <= -self.margin if self.margin else d < 0


@contextmanager
def interrupted_before(line: int | None) -> Iterator[None]:
    """With a KeyboardInterrupt before the n-th line that the package runs, unless that is None."""
    left, paused = line or 0, False

    def watch(frame: Any, event: str, _: object) -> Any:
        nonlocal left, paused
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if frame.f_code.co_name in ONCE:
            paused = event != "return"
        elif event == "line" and not paused:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return watch

    outer = sys.gettrace()
    if line is not None:
        sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(outer)
