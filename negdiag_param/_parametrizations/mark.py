"""What wrote a checkpoint: a text in a tensor, which every checkpoint format takes."""

import torch
from torch import Tensor

from negdiag_param._parametrizations.options import Options

_BYTES = 192


def describe(map_name: str, options: Options) -> str:
    """The map with all that changes what an original means."""
    text = f"{map_name}(margin={options.margin}"
    meaning = {"dims": options.dims, "blocks": options.blocks, "taps": options.taps}
    shown = [f", {key}={meaning[key]!r}" for key in options.changed() if key in meaning]
    return text + "".join(shown) + ")"


def encode(description: str) -> Tensor:
    """The description in a tensor of fixed size."""
    text = description.encode("ascii", "replace")[:_BYTES].ljust(_BYTES)
    return torch.tensor(list(text), dtype=torch.uint8, device="cpu")


def mismatch(mark: Tensor, description: str) -> str | None:
    """What keeps a checkpoint with ``mark`` from being loaded where ``description`` holds."""
    if mark.is_meta:
        return None  # it says nothing
    found, expected = _decode(mark), _decode(encode(description))
    if found == expected:
        return None
    return f"expected a checkpoint of {expected}, found one of {found}"


def _decode(mark: Tensor) -> str:
    codes = mark.detach().cpu().to(torch.uint8).tolist()
    return bytes(codes).decode("ascii", "replace").strip()
