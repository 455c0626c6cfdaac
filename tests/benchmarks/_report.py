"""Tables of ratios, as markdown and as JSON."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TypeAlias

import torch

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


@dataclass(frozen=True)
class Report:
    """All tables of one run, with when and where it was."""

    date: str
    machine: str
    torch_version: str
    tables: list[Table]

    @classmethod
    def of(cls, device: torch.device, tables: list[Table]) -> "Report":
        """Stamps the tables of the run that ends now."""
        today = datetime.now(timezone.utc).date().isoformat()
        return cls(today, _machine(device), torch.__version__, tables)

    def markdown(self) -> str:
        """Ready to be pasted into a README."""
        head = (
            f"Measured on {self.date}, {self.machine}, torch {self.torch_version}, float32. "
            f"Medians with [lower, upper] quartile of interleaved runs; 1.00 is each table's unit."
        )
        return "\n".join([head, "", *(table.markdown() for table in self.tables)])


def tell(progress: str) -> None:
    """To the screen, not into the report."""
    print(progress, file=sys.stderr, flush=True)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores, threads = os.cpu_count(), torch.get_num_threads()
    architecture = platform.machine().replace("x86_64", "x86-64")
    return f"{cores}-core {architecture} CPU" + (f", threads: {threads}" * (threads != cores))
