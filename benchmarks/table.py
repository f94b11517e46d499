"""The file that a benchmark leaves in `results/`: Markdown tables, and how they were measured.

In: titles, columns, rows as they are measured. Out: rows on stdout at once, and results/NAME.md when
all of them are there.
"""

import datetime
import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from firp.runtime.machine import cores, processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers")  # those that are there are named


class Run(NamedTuple):
    """The circumstances of a measurement."""

    command: str
    commit: str  # of this project
    date: str
    machine: str


def this_run() -> Run:
    """The circumstances of this process."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    versions = (f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    return Run(
        command=" ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        commit=found.stdout.strip() or "unknown",
        date=datetime.date.today().isoformat(),
        machine=", ".join([processor(), f"{cores()} cores", *versions]),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass
class Table:
    """Rows below a caption. Cells are shown by `str`."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row, and show it. Raises ValueError when it has not a cell for every column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns: {cells}")
        if not self.rows:
            print(f"{self.caption}: {' | '.join(self.columns)}")
        self.rows.append(cells)
        print(" | ".join(map(str, cells)), flush=True)

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        escaped = (" | ".join(str(cell).replace("|", "\\|") for cell in cells) for cells in lines)
        return f"## {self.caption}\n\n" + "\n".join(f"| {line} |" for line in escaped)


class Result:
    """What one benchmark found. name: of the file, without its suffix."""

    def __init__(self, name: str, title: str):
        self.name = name
        self.title = title
        self.tables: list[Table] = []
        self.notes: list[str] = []

    def table(self, caption: str, *columns: str) -> Table:
        """A new table, to be filled with `Table.add`."""
        self.tables.append(Table(caption, columns))
        return self.tables[-1]

    def note(self, text: str) -> None:
        """Add a sentence that stands below the tables, and show it."""
        self.notes.append(text)
        print(text, flush=True)

    def write(self, run: Run | None = None) -> Path:
        """Write results/NAME.md over what an earlier run left. run: its circumstances; None: those
        of this process.
        """
        run = run or this_run()
        head = [
            f"# {self.title}",
            f"`{run.command}`",
            f"{run.date}, commit {run.commit}; {run.machine}.",
        ]
        path = RESULTS / f"{self.name}.md"
        path.parent.mkdir(exist_ok=True)
        parts = [*head, *(table.markdown() for table in self.tables), *self.notes]
        path.write_text("\n\n".join(parts) + "\n", "utf-8")
        print(f"wrote {path}", file=sys.stderr)
        return path
