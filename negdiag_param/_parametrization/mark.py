"""What wrote a checkpoint: a text in a tensor, which every checkpoint format takes.

State dicts are averaged, cast and noised by those who train on many clients, so the text is kept
in floating point, its characters so far apart that they survive it: multiples of 8 up to 1016,
which float16 and bfloat16 hold exactly.
"""

import hashlib
import math
from contextlib import suppress

import torch
from torch import Tensor

from negdiag_param._maths.strict import ScalarMap
from negdiag_param._parametrization.invert import summary
from negdiag_param._parametrization.options import Options
from negdiag_param._private import has_values

_LENGTH, _TEXT, _GAP = 256, 176, 8.0
_KEPT = ("dims", "blocks", "taps", "dominance")  # the options that change what an original means
_WITH = " with "


def meaning(scalar_map: ScalarMap, options: Options, values: tuple[float, ...]) -> str:
    """What an original means: the map, its options, and some of its values, if they are known."""
    changed = options.changed().items()
    parts = [f"{k}={v}" for k, v in (*scalar_map.constants.items(), ("margin", options.margin))]
    parts += [f"{k}={v!r}" for k, v in changed if k in _KEPT and (k, v) != ("dims", (0, 1))]
    text = f"{scalar_map.name}({', '.join(parts)})".encode("ascii", "backslashreplace").decode()
    if len(text) > _TEXT:
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        text = f"{text[: _TEXT - len(digest) - 1]}#{digest}"
    return text + (_WITH + " ".join(f"{value:.6g}" for value in values) if values else "")


def encode(text: str) -> Tensor:
    """The text in a tensor of fixed size."""
    codes = [*text.encode()[:_LENGTH].ljust(_LENGTH)]
    return torch.tensor(codes, dtype=torch.float32, device="cpu") * _GAP


def mismatch(mark: object, expected: str) -> str | None:
    """What keeps a checkpoint with ``mark`` from being loaded where ``expected`` is meant."""
    if not (isinstance(mark, Tensor) and mark.ndim == 1 and mark.layout == torch.strided) or (
        mark.is_complex() or mark.is_quantized
    ):
        what = summary(mark) if isinstance(mark, Tensor) else repr(mark)
        return f"expected the mark of {expected}, a tensor of shape ({_LENGTH},), found {what}"
    if not has_values(mark):
        return None  # a meta or fake tensor holds no text
    codes = (mark.detach().cpu().double() / _GAP).nan_to_num().round().clamp(0, 127)
    found = bytes(codes.to(torch.uint8).tolist()).decode("ascii").strip("\0 ")
    (text, _, values), (wanted, _, others) = (t.partition(_WITH) for t in (found, expected))
    agrees = text == wanted
    if agrees and values and others:  # the values have to be nearly the same
        agrees = False
        with suppress(ValueError):  # of what is no number, and of fewer values
            pairs = zip(map(float, values.split()), map(float, others.split()), strict=True)
            agrees = all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12) for a, b in pairs)
    what = f"expected a checkpoint of {expected}, found one of {found or 'no map'}"
    return None if agrees else what
