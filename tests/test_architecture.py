"""Imports point one way, and only the facade is public."""

import ast
from pathlib import Path

import negdiag_param

PACKAGE = Path(negdiag_param.__file__).parent


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("negdiag_param"):
            inner = (node.module or "").partition(".")[2]
            found |= {inner} if inner else {alias.name for alias in node.names}
    return found


ROOMS = {path.stem: imports(path) for path in PACKAGE.glob("*.py")}
DOORS = {"__init__", "__main__"}


def test_maps_and_diagonals_know_nothing_of_each_other():
    assert not ROOMS["_maps"]
    assert not ROOMS["_diagonal"]


def test_nothing_inside_imports_the_facade():
    inside = {room: found for room, found in ROOMS.items() if room not in DOORS}
    for room, found in inside.items():
        assert found <= set(ROOMS) - DOORS or room == "_hudson_bay", (room, found)


def test_imports_point_one_way():
    order: list[str] = []
    rooms = {room: found & set(ROOMS) for room, found in ROOMS.items() if room not in DOORS}
    while rooms:
        ready = sorted(room for room, found in rooms.items() if found <= set(order))
        assert ready, f"a circle among {sorted(rooms)}"
        order += ready
        rooms = {room: found for room, found in rooms.items() if room not in ready}


def test_the_facade_is_complete():
    public = [name for name in vars(negdiag_param) if not name.startswith("_")]
    assert sorted(public) == sorted(negdiag_param.__all__)
