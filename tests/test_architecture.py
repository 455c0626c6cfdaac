"""Five storeys, arrows down only: what a room needs stands below it, or beside it in its storey."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import negdiag_param

PACKAGE = Path(negdiag_param.__file__).parent
ROOMS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
# Beside the facade and the program: they alone read private names of PyTorch, and the stack.
GROUND = {room for room in ROOMS if "." not in room and not room.startswith("__")}
# From the top. A room may import from its own storey and from those below.
STOREYS = ("_doors", "_life", "_parametrization", "_ranks", "_maths", "ground")


def storey(room: str) -> str:
    return "ground" if room in GROUND else room.partition(".")[0]


def imports(path: Path) -> set[str]:
    """The rooms that a file imports; the facade is the empty name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("negdiag_param"):
            inner = (node.module or "").partition(".")[2]
            rooms = {f"{inner}.{alias.name}".strip(".") for alias in node.names} & ROOMS.keys()
            found |= rooms or {inner}
    return found


def climbs(room: str, imported: set[str]) -> Iterator[str]:
    """Those of the imports that lead upwards, or out of the house."""
    for other in imported:
        inside = storey(other) in STOREYS
        if not inside or STOREYS.index(storey(other)) < STOREYS.index(storey(room)):
            yield other


OUTSIDE = {"__init__", "__main__"}
HOUSE = sorted(room for room in ROOMS if storey(room) in STOREYS)


@pytest.mark.parametrize("room", HOUSE)
def test_no_import_climbs(room):
    assert not list(climbs(room, imports(ROOMS[room])))


def test_a_climbing_import_would_be_found(tmp_path):
    room = tmp_path / "limits.py"
    room.write_text("from negdiag_param._life import lookup\nfrom negdiag_param import init_\n")
    assert sorted(climbs("_maths.limits", imports(room))) == ["", "_life.lookup"]


def test_no_circle_within_a_storey():
    graph = {room: imports(ROOMS[room]) & {*HOUSE} for room in HOUSE}
    TopologicalSorter(graph).prepare()  # or a CycleError


def test_what_is_not_in_the_house_uses_the_facade():
    assert {room for room in ROOMS if storey(room) not in (*STOREYS, "_demo")} == OUTSIDE
    for room in ROOMS:
        if storey(room) in ("_demo", "__main__"):
            assert {storey(other) for other in imports(ROOMS[room])} <= {"", "_demo"}, room


def test_where_a_diagonal_lies_depends_on_nothing_else():
    assert not imports(ROOMS["_maths.diagonal"]) - GROUND


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - GROUND))
def test_private_names_of_pytorch_are_read_on_the_ground(room):
    allowed = {"_slotnames"}  # of copyreg
    for node in ast.walk(ast.parse(ROOMS[room].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found = f"line {node.lineno}: {node.attr}"
            assert of_self or node.attr.startswith("__") or node.attr in allowed, found


def test_the_facade_is_complete():
    public = [name for name in vars(negdiag_param) if not name.startswith("_")]
    assert sorted(public) == sorted(negdiag_param.__all__)


@pytest.mark.slow
def test_distributed_tensors_are_not_imported_for_those_who_have_none() -> None:
    """Nor needed: they are missing where PyTorch was built without torch.distributed."""
    code = """
import sys
from torch import nn
from negdiag_param import init_, negative_diagonals, plain_state_dict
from negdiag_param import register_negative_diagonal, remove_negative_diagonal
name = "torch.distributed.tensor"
for _ in range(2):
    layer = register_negative_diagonal(nn.Linear(3, 3), cache_in_eval=True)
    layer.weight.sum().backward()
    layer.weight = -layer.weight.detach()
    init_(layer, "weight", nn.init.zeros_)
    layer.load_state_dict(plain_state_dict(layer))
    assert dict(negative_diagonals(layer.eval()))["weight"].max() < 0
    remove_negative_diagonal(layer)
    assert sys.modules.get(name) is None
    sys.modules[name] = None  # the second time it cannot be imported
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
