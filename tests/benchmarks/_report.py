"""Tables of ratios, as markdown and as JSON."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.benchmarks._timing import Ratio

Cell: TypeAlias = Ratio | float | int | str


@dataclass
class Table:
    """Rows by name, each with its cells by column; what is not measured stays empty."""

    title: str
    unit: str
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def put(self, column: str, cells: Mapping[str, Cell]) -> None:
        """Fills one column."""
        for row, cell in cells.items():
            self.rows.setdefault(row, {})[column] = cell

    def markdown(self) -> str:
        """The table under its title."""
        columns = list(dict.fromkeys(column for cells in self.rows.values() for column in cells))
        lines = [["", *columns], ["---", *("---:" for _ in columns)]]
        lines += [
            [name, *(_text(cells.get(column)) for column in columns)]
            for name, cells in self.rows.items()
        ]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{self.unit}\n\n{body}\n"


def tell(progress: str) -> None:
    """To the screen, not into the report."""
    print(progress, file=sys.stderr, flush=True)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
