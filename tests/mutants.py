"""Breaks the package, one operator at a time, and sees which tests notice.

``python -m tests.mutants [--sample N] [--seed S] [--processes P] [--only TEXT] [storey ...]``

A mutant is what cosmic-ray makes of one operator, number or decorator in one file; of the many that
it offers for one place, one is drawn. What only changes an annotation is none. The tests run in
stages, the likeliest first, in a copy of the repository. Every mutant is named; one that goes
through them all, with its difference.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
PACKAGE = "negdiag_param"
APART = ("harness", "frameworks", "script")  # of PyTorch's and others' own
RANKS = ["tests/ranks", *(f"--ignore=tests/ranks/test_{name}.py" for name in APART)]
QUICK = [f"tests/{name}" for name in ("maths", "doors", "life", "bad_input", "tracing")]
ALL = [QUICK, [*RANKS, "tests/life/test_wrapped.py"]]
# For each storey what runs, one after the other: what is likely to notice before all the others.
STAGES = {
    "_demo": [["tests/test_demo.py"]],
    "_maths": [["tests/maths"], *ALL],
    "_parametrization": [["tests/maths", "tests/life"], *ALL],
    "_life": [["tests/life", "tests/doors"], *ALL],
    "_doors": [["tests/doors", "tests/bad_input"], *ALL],
    "_ranks": [["tests/maths/test_shards.py"], RANKS, *ALL],
}
PATIENCE = 900.0  # seconds; what is still running then is taken for a loop without end
SAYS_NOTHING = {"override", "abstractmethod", "overload", "final"}


class Mutant(NamedTuple):
    path: Path
    operator: str
    position: tuple[int, int]
    code: str

    @property
    def difference(self) -> str:
        lines = [text.splitlines() for text in ((ROOT / self.path).read_text(), self.code)]
        shown = difflib.unified_diff(*lines, n=0, lineterm="")
        return "\n".join(line for line in shown if not line.startswith(("---", "+++")))


class Meaning(ast.NodeTransformer):
    """What is left without what only people and type checkers read, and sizes of caches."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        vars(node).update(dict.fromkeys(vars(node).keys() & {"returns", "annotation"}))
        if isinstance(node, ast.FunctionDef):
            marks = node.decorator_list
            node.decorator_list = [d for d in marks if getattr(d, "id", "") not in SAYS_NOTHING]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lru_cache":
            node.keywords = []  # how much is remembered
        return super().generic_visit(node)


def meaning(code: str) -> str:
    """The same text for what runs alike, and none for what is not Python."""
    try:
        return ast.dump(Meaning().visit(ast.parse(code)))
    except SyntaxError:
        return ""


def mutants(path: Path, draw: random.Random) -> Iterator[Mutant]:
    """One for every place of the file that an operator or a number of operators could change."""
    code = (ROOT / path).read_text()
    tree, places = get_ast(code), {}
    for name in sorted(operator_names()):
        if (kind := get_operator(name)).arguments():
            continue
        found = (span for node in ast_nodes(tree) for span in kind().mutation_positions(node))
        for occurrence, (start, _) in enumerate(found):
            places.setdefault((start, name.partition("_")[0]), []).append((name, occurrence))
    for (start, _), choices in sorted(places.items()):
        draw.shuffle(choices)
        for name, occurrence in choices:
            mutated = mutate_code(code, get_operator(name)(), occurrence)
            if mutated and meaning(mutated) not in {"", meaning(code)}:
                yield Mutant(path, name, start, mutated)
                break


def passes(tree: Path, arguments: list[str]) -> bool:
    chosen = "slow" if "ranks" in arguments[0] else "not slow"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", chosen]
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    how = {"cwd": tree, "env": env, "capture_output": True, "timeout": PATIENCE}
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run([*command, *arguments], **how).returncode == 0
    return False


@functools.cache
def copied(folder: Path, thread: int) -> Path:
    """A copy of what the tests need, which no other thread uses."""
    tree = folder / str(thread)
    for name in (PACKAGE, "tests", "notebooks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree)
    return tree


def survives(folder: Path, mutant: Mutant) -> bool:
    tree = copied(folder, threading.get_ident())
    (tree / mutant.path).write_text(mutant.code)
    try:
        return all(passes(tree, tests) for tests in STAGES.get(mutant.path.parts[1], ALL))
    finally:
        shutil.copy(ROOT / mutant.path, tree / mutant.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    storeys = sorted(path.parent.name for path in ROOT.glob(f"{PACKAGE}/*/__init__.py"))
    parser.add_argument("storeys", nargs="*", default=storeys)
    parser.add_argument("--sample", type=int, help="mutants to draw of each storey")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="files with this in their names")
    options = parser.parse_args()
    if unknown := sorted({*options.storeys} - {*storeys}):
        parser.error(f"expected some of {', '.join(storeys)}, got {', '.join(unknown)}")
    with TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        tried = functools.partial(survives, Path(folder))
        for storey in options.storeys:
            draw = random.Random(options.seed)
            files = sorted((ROOT / PACKAGE / storey).glob("*.py"))
            paths = [path for path in files if options.only in path.name]
            whole = Mutant(paths[0].relative_to(ROOT), "none", (0, 0), paths[0].read_text())
            if not pool.submit(tried, whole).result():
                sys.exit(f"the tests of {storey} fail on the package as it is")
            every = [m for path in paths for m in mutants(path.relative_to(ROOT), draw)]
            drawn = sorted(draw.sample(every, min(options.sample or len(every), len(every))))
            killed = len(drawn)
            for mutant, survived in zip(drawn, pool.map(tried, drawn), strict=True):
                killed -= survived
                place = f"{mutant.path}:{mutant.position[0]}"
                print(f"{place} survives\n{mutant.difference}" if survived else place, flush=True)
            print(f"{storey}: {killed} of {len(drawn)} killed, drawn from {len(every)}", flush=True)


if __name__ == "__main__":
    main()
