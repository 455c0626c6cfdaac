"""The notebooks are kept with their outputs, and a run shows what is kept.

After a change to one, or to what it shows: ``python -m tests.notebooks notebooks/NAME.ipynb``
runs it and keeps the new outputs. Look at them, then commit.
"""

import ast
import re

import pytest

pytest.importorskip("nbformat")

from tests import notebooks

pytestmark = pytest.mark.integration("nbclient", "ipykernel")
assert notebooks.NOTEBOOKS
every_notebook = pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
# What depends on the machine, or on the day.
STRAY = re.compile(r"0x[0-9a-f]{6,}|/(home|tmp|usr|work|root)/|site-packages|\bwarning", re.I)


@every_notebook
def test_a_notebook_is_kept_small_with_outputs_that_are_the_same_everywhere(path):
    notebook = notebooks.read(path)
    assert path.stat().st_size < 150_000
    assert notebook.metadata == notebooks.METADATA
    cells = notebooks.code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = {kind for cell in cells for kind in notebooks.kinds(cell)}
    assert {"stdout", "picture"} <= shown <= {"stdout", "text", "picture"}
    for cell in cells:
        assert cell.metadata == {}
        assert not STRAY.search(notebooks.text(cell))
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell in cells and "picture" in notebooks.kinds(cell):  # and then what to see in it
            assert following is not None
            assert following.cell_type == "markdown"
            assert not following.source.startswith("#")


def looks(path):
    """The lines of a notebook that set up its figures, and what it draws each method with."""
    source = "\n".join(cell.source for cell in notebooks.code_cells(notebooks.read(path)))
    (drawn,) = [
        ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "STYLES"
    ]
    return [line for line in source.splitlines() if "rcParams" in line], drawn


def test_all_notebooks_look_alike():
    lines, drawn = zip(*map(looks, notebooks.NOTEBOOKS), strict=True)
    assert "'figure.dpi': 150" in ast.unparse(ast.parse("\n".join(lines[0])))
    assert all(other == lines[0] for other in lines)
    colors = {(method, style["color"]) for styles in drawn for method, style in styles.items()}
    assert len(colors) == len({method for method, _ in colors})
    for styles in drawn:
        assert len({str(sorted(style.items())) for style in styles.values()}) == len(styles)


@pytest.mark.slow
@every_notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_shows_what_is_kept(path):
    kept, new = notebooks.read(path), notebooks.executed(path)
    found = list(notebooks.differences(kept, new))
    assert not found


SAID = "0 of 9: 0.01, 0.25"
OUTPUT = {"output_type": "stream", "name": "stdout", "text": SAID}
PICTURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": ""}}
CHANGES = [
    ([], "showed"),
    ([OUTPUT, PICTURE], "showed"),
    ([OUTPUT | {"name": "stderr"}], "showed"),
    ([OUTPUT | {"text": f"{SAID} and more"}], "said"),
    ([OUTPUT | {"text": "0 of 9: 0.01, 0.29"}], "0.25 -> 0.29"),
    ([OUTPUT | {"text": "0 of 9: 0.01, -0.25"}], "0.25 -> -0.25"),
    ([OUTPUT | {"text": "1 of 9: 0.01, 0.25"}], "0 -> 1"),
    ([OUTPUT | {"text": "0 of 9: 0.02, 0.25"}], None),  # another last place
    ([OUTPUT | {"text": "0 of 9: 0.01, 0.26"}], None),  # within 10 %
]


@pytest.mark.parametrize(("outputs", "found"), CHANGES)
def test_what_counts_as_a_difference(outputs, found):
    import nbformat

    def notebook(outputs):
        outputs = [nbformat.from_dict(output) for output in outputs]
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])

    differences = list(notebooks.differences(notebook([OUTPUT]), notebook(outputs)))
    assert len(differences) == (found is not None)
    assert found is None or found in differences[0]
