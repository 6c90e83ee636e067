"""Tables and pictures from result rows, beside what the paper prints; the same rows to W&B."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from jointsvd.results.accuracy_picture import picture
from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.rows import collect, summarize
from jointsvd.results.table import conditions, readable
from jointsvd.results.tracking import log_summary

_TEXTS = ("method", "layers", "what", "why")


def report(folder: Path, logger: Mapping[str, Any]) -> pd.DataFrame:
    """Print the table of the rows in `folder`; save results.csv, table.md and accuracy.png there; log it to W&B.

    logger: options of W&B as in `tracking`; {}: none. Returns the table.
    """
    rows = collect(folder)
    table, note = render(rows, folder)
    print_table(table, note)
    print(f"Saved {folder}/results.csv, table.md and accuracy.png")
    if logger:
        log_summary(logger, folder, table, rows)
    return table


def render(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, str]:
    """Write table.md and accuracy.png of `rows` to `folder`; returns the table and the sentence below it."""
    table, note = readable(rows), conditions(rows)
    write_table(folder / "table.md", table, note)
    write_picture(folder / "accuracy.png", picture(summarize(rows)))
    return table, note


def print_table(table: pd.DataFrame, note: str) -> None:
    """On the terminal, with `note` below."""
    grid = Table(caption=note)
    for column in table.columns:
        grid.add_column(column, justify="left" if column in _TEXTS else "right")
    for line in table.itertuples(index=False):
        grid.add_row(*map(str, line))
    console = Console()
    # a pipe or a log has no width of its own, and a wrapped table cannot be read
    Console(width=max(console.width, 190) if not console.is_terminal else None).print(grid)
