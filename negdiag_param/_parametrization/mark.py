"""What wrote a checkpoint: a text in a tensor, which every checkpoint format takes.

State dicts are averaged, cast and noised by those who train on many clients, so the text is kept
in floating point, its characters so far apart that they survive it: multiples of 8 up to 1016,
which float16 and bfloat16 hold exactly.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from negdiag_param._maths.strict import ScalarMap
from negdiag_param._parametrization.invert import summary
from negdiag_param._parametrization.options import Options
from negdiag_param._private import has_values

_LENGTH, _TEXT, _GAP = 256, 176, 8.0
_KEPT = ("dims", "blocks", "taps", "dominance")  # the options that change what an original means


class Meaning(NamedTuple):
    """What an original means: the map with its options, and some of its values, if known."""

    text: str
    values: tuple[float, ...]

    @classmethod
    def of(cls, scalar_map: ScalarMap, options: Options, values: tuple[float, ...]) -> "Meaning":
        """The map with all that changes what an original means."""
        changed = options.changed().items()
        parts = [f"{k}={v}" for k, v in (*scalar_map.constants.items(), ("margin", options.margin))]
        parts += [f"{k}={v!r}" for k, v in changed if k in _KEPT and (k, v) != ("dims", (0, 1))]
        text = f"{scalar_map.name}({', '.join(parts)})".encode("ascii", "backslashreplace").decode()
        if len(text) > _TEXT:
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            text = f"{text[: _TEXT - len(digest) - 1]}#{digest}"
        return cls(text, values)

    def __str__(self) -> str:
        values = [f"{value:.6g}" for value in self.values]
        return " ".join([self.text, *(["with"] if values else []), *values])


def encode(meaning: Meaning) -> Tensor:
    """The meaning in a tensor of fixed size."""
    text = str(meaning).encode()[:_LENGTH].ljust(_LENGTH)
    return torch.tensor(list(text), dtype=torch.float32, device="cpu") * _GAP


def mismatch(mark: object, expected: Meaning) -> str | None:
    """What keeps a checkpoint with ``mark`` from being loaded where ``expected`` holds."""
    if not (isinstance(mark, Tensor) and mark.ndim == 1 and mark.layout == torch.strided) or (
        mark.is_complex() or mark.is_quantized
    ):
        what = summary(mark) if isinstance(mark, Tensor) else repr(mark)
        return f"expected the mark of {expected}, a tensor of shape ({_LENGTH},), found {what}"
    if not has_values(mark):
        return None  # a meta or fake tensor holds no text
    found = _decode(mark)
    if found.text == expected.text and _agree(found.values, expected.values):
        return None
    return f"expected a checkpoint of {expected}, found one of {found if found.text else 'no map'}"


def _decode(mark: Tensor) -> Meaning:
    codes = (mark.detach().cpu().double() / _GAP).nan_to_num().round().clamp(0, 127)
    text = bytes(codes.to(torch.uint8).tolist()).decode("ascii").strip("\0 ")
    text, _, values = text.partition(" with ")
    try:
        return Meaning(text, tuple(map(float, values.split())))
    except ValueError:
        return Meaning(text, (math.nan,))  # which agrees with nothing


def _agree(found: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    if not found or not expected:
        return True  # unknown for a map that cannot be evaluated on its own
    pairs = zip(found, expected, strict=False)
    close = (math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12) for a, b in pairs)
    return len(found) == len(expected) and all(close)
