"""Tables and pictures from result rows, beside what the paper prints; the same rows to W&B."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jointsvd.rendered import write_picture, write_table
from jointsvd.results import collect, summarize
from jointsvd.table import conditions, differing_names, label, readable, schedule_words
from jointsvd.tracking import log_summary

_TEXTS = ("method", "layers", "what", "why")


def report(folder: Path, logger: Mapping[str, Any]) -> pd.DataFrame:
    """Print the table of the rows in `folder`; save results.csv, table.md and accuracy.png there; log it to W&B.

    logger: the logger configuration; only wandb's does anything. Returns the table.
    """
    rows = collect(folder)
    table, note = render(rows, folder)
    print_table(table, note)
    print(f"Saved {folder}/results.csv, table.md and accuracy.png")
    if "_target_" in logger:
        log_summary(folder, table, rows, logger)
    return table


def render(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, str]:
    """Write table.md and accuracy.png of `rows` to `folder`; returns the table and the sentence below it."""
    table, note = readable(rows), conditions(rows)
    write_table(folder / "table.md", table, note)
    write_picture(folder / "accuracy.png", picture(summarize(rows), note))
    return table, note


def picture(summary: pd.DataFrame, note: str) -> Figure:
    """Accuracy against CF, a line a method; or against p, where that of Bi-JSVD was swept. Dense ones dashed."""
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    compressed = summary[summary["method"] != "dense"]
    over_share = compressed["left_share"].nunique() > 2 and set(compressed["method"]) == {"bijsvd"}
    x = "left_share" if over_share else "compression_factor"
    differing, words = differing_names(summary), schedule_words(summary["schedule"])
    names = []
    for row in compressed.to_dict("records"):
        conditions_of = [str(words.get(row[name], row[name])) for name in differing]
        names.append(", ".join([f"rank_rate {row['rank_rate']:g}" if over_share else label(row), *conditions_of]))
    named = compressed.assign(label=names)
    colors = colormaps["tab10" if named["label"].nunique() <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for index, (name, lines) in enumerate(named.groupby("label", sort=False)):
        lines = lines.sort_values(x)
        axes.errorbar(
            lines[x],
            lines["top1_mean"],
            yerr=lines["top1_std"].fillna(0),
            marker="osD^vP*X<>"[index % 10],
            capsize=3,
            alpha=0.85,
            color=colors[index % len(colors)],
            label=name,
        )
    for row in summary[summary["method"] == "dense"].to_dict("records"):
        axes.axhline(row["top1_mean"], linestyle="--", color="black", linewidth=1, label="dense (control)")
    model, data = (" / ".join(summary[name].unique()) for name in ("model", "data"))
    axes.set(title=f"{model} on {data}", xlabel="left share p" if over_share else "compression factor (all parameters)")
    untrained = (summary["schedule"] == "no training").all()
    axes.set_ylabel("raw top-1 accuracy, %" if untrained else "top-1 accuracy, %, mean ± std over seeds")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if not over_share and compressed[x].max() > 3 * compressed[x].min():
        axes.set_xscale("log")
        low, high = 0.8 * compressed[x].min(), 1.2 * compressed[x].max()
        ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500) if low < tick < high]
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)
    columns = max(1, min(4, 120 // (max(map(len, names), default=0) + 8)))
    figure.legend(loc="outside upper center", frameon=False, ncols=columns, fontsize="small")
    figure.set_figheight(5.4 + 0.2 * max(0, len(set(names)) / columns - 4))
    figure.supxlabel(textwrap.fill(note, 150), fontsize=6)
    return figure


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
