"""Runs the notebooks and keeps what they show: ``python -m tests.notebooks [file ...]``.

All of them without a file. Each is run from top to bottom in a fresh kernel, and written back with
its outputs and nothing that depends on the machine.
"""

import base64
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def executed(path: Path) -> Any:
    """The notebook as it comes out of a run; raises where a cell does."""
    notebook = read(path)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,  # pytest has one
        startup_timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # The package beside the notebook, whatever is installed.
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    notebook.metadata = nbformat.from_dict(METADATA)
    for data in (o.get("data", {}) for cell in code_cells(notebook) for o in cell.outputs):
        if "image/png" in data:  # kept in 64 colours: a third of the bytes
            picture, kept = (
                Image.open(io.BytesIO(base64.b64decode(data["image/png"]))),
                io.BytesIO(),
            )
            picture.convert("RGB").quantize(64).save(kept, "PNG", optimize=True)
            data["image/png"] = base64.b64encode(kept.getvalue()).decode()
    return notebook


def kinds(cell: Any) -> list[str]:
    """What a cell shows, without what it says: streams, texts, pictures."""
    return [
        "picture" if "image/png" in output.get("data", {}) else output.get("name", "text")
        for output in cell.outputs
    ]


def text(cell: Any) -> str:
    """All that a cell prints, on one line."""
    shown = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
        if "image/png" not in output.get("data", {})
    ]
    return " ".join(" ".join(shown).split())


def close(kept: str, new: str) -> bool:
    """Within 10 %, or within one of the last decimal place that is kept."""
    mantissa, _, exponent = kept.partition("e")
    decimals = len(mantissa.partition(".")[2])
    last = 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0
    return abs(float(kept) - float(new)) <= max(0.1 * abs(float(kept)), 1.001 * last)


def differences(kept: Any, new: Any) -> Iterator[str]:
    """Where a notebook as kept and as run differ in kind, in words or in figures."""
    cells = zip(code_cells(kept), code_cells(new), strict=True)
    for number, (was, now) in enumerate(cells, start=1):
        if kinds(was) != kinds(now):
            yield f"cell {number} showed {kinds(was)}, now {kinds(now)}"
        elif NUMBER.sub("#", text(was)) != NUMBER.sub("#", text(now)):
            yield f"cell {number} said {text(was)!r}, now {text(now)!r}"
        else:
            pairs = zip(NUMBER.findall(text(was)), NUMBER.findall(text(now)), strict=True)
            far = [f"{a} -> {b}" for a, b in pairs if not close(a, b)]
            if far:
                yield f"cell {number} has other figures: {', '.join(far)}"


def main(arguments: list[str]) -> None:
    for path in map(Path, arguments or NOTEBOOKS):
        notebook = executed(path)
        changes = list(differences(read(path), notebook))
        nbformat.write(notebook, path)
        print(path.name, *(changes or ["as before"]), sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1:])
