"""What wrote a checkpoint: a text in a tensor, which every checkpoint format takes.

State dicts are averaged, cast and noised by those who train on many clients, so the text is kept
in floating point, its characters so far apart that they survive it: multiples of 8 up to 1016,
which float16 and bfloat16 hold exactly.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from negdiag_param._parametrizations.options import Options
from negdiag_param._torch_private import has_values

_LENGTH, _TEXT, _GAP = 256, 176, 8.0


class Meaning(NamedTuple):
    """What an original means: the map with its options, and some of its values."""

    text: str
    values: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        map_name: str,
        constants: Mapping[str, float],
        options: Options,
        values: tuple[float, ...],
    ) -> "Meaning":
        """The map with all that changes what an original means."""
        shown = {k: v for k, v in options.changed().items() if (k, v) != ("dims", (0, 1))}
        parts = [f"{key}={value}" for key, value in constants.items()]
        parts += [f"margin={options.margin}"]
        kept = ("dims", "blocks", "taps")
        parts += [f"{key}={shown[key]!r}" for key in kept if key in shown]
        text = f"{map_name}({', '.join(parts)})".encode("ascii", "backslashreplace").decode()
        if len(text) > _TEXT:
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            text = f"{text[: _TEXT - len(digest) - 1]}#{digest}"
        return cls(text, values)

    @classmethod
    def parse(cls, text: str) -> "Meaning":
        """The reverse of ``str``; values that are none read as NaN."""
        text, _, values = text.partition(" with ")
        return cls(text, tuple(_number(value) for value in values.split()))

    def __str__(self) -> str:
        return " ".join([self.text, *(["with"] if self.values else []), *map(_shown, self.values)])


def encode(meaning: Meaning) -> Tensor:
    """The meaning in a tensor of fixed size."""
    text = str(meaning).encode()[:_LENGTH].ljust(_LENGTH)
    return torch.tensor(list(text), dtype=torch.float32, device="cpu") * _GAP


def mismatch(mark: object, expected: Meaning) -> str | None:
    """What keeps a checkpoint with ``mark`` from being loaded where ``expected`` holds."""
    if not isinstance(mark, Tensor) or mark.ndim != 1 or not _is_real(mark):
        what = (
            f"shape {tuple(mark.shape)}, {mark.dtype}" if isinstance(mark, Tensor) else repr(mark)
        )
        return f"expected the mark of {expected}, a tensor of shape ({_LENGTH},), found {what}"
    if not has_values(mark):
        return None  # it says nothing
    found = Meaning.parse(_decode(mark))
    if found.text == expected.text and _agree(found.values, expected.values):
        return None
    return f"expected a checkpoint of {expected}, found one of {found if found.text else 'no map'}"


def _decode(mark: Tensor) -> str:
    # Version 0.1 wrote the characters as bytes.
    codes = mark.detach().cpu().double() / (1.0 if mark.dtype == torch.uint8 else _GAP)
    characters = codes.nan_to_num().round().clamp(0, 127).to(torch.uint8).tolist()
    return bytes(characters).decode("ascii").strip("\0 ")


def _is_real(mark: Tensor) -> bool:
    return mark.layout == torch.strided and not (mark.is_complex() or mark.is_quantized)


def _agree(found: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    if not found or not expected:
        return True  # a map that cannot be tried out, or version 0.1, says nothing
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12)
        for a, b in zip(found, expected, strict=True)
    )


def _shown(value: float) -> str:
    return f"{value:.6g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
