"""Where commands print: results to stdout, everything else to stderr."""

from rich.console import Console
from rich.table import Table

# Columns of a table that goes to a file.
PAGE_WIDTH = 160

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_table(table: Table) -> None:
    (console if console.is_terminal else Console(width=PAGE_WIDTH)).print(table)
