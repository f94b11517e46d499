"""Results and tables, on stdout. In: lines, or rows of cells. Out: text that is never cut."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

results = Console(highlight=False, soft_wrap=True, markup=False)
# a number that is cut is worse than a line that is long
_tables = Console(width=400, highlight=False, markup=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table, its first column to the left, the others to the right."""
    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if title:
        results.print(title)
    _tables.print(table)
