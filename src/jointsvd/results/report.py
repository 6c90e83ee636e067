"""Tables and pictures from result rows, beside what the paper prints; the same rows to W&B."""

import textwrap
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.rows import collect, summarize
from jointsvd.results.table import conditions, differing_names, label, readable, schedule_words
from jointsvd.results.tracking import log_summary

_TEXTS = ("method", "layers", "what", "why")
_MOST_LINES = 16
_BESIDE: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": "x-small"}


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
    write_picture(folder / "accuracy.png", picture(summarize(rows), note))
    return table, note


def picture(summary: pd.DataFrame, note: str) -> Figure:
    """A panel a network, a line a method: accuracy against CF, or against p where that of Bi-JSVD was swept. Of more
    lines than can be told apart, a row each (`_list`)."""
    compressed = summary[summary["method"] != "dense"]
    over_share = compressed["left_share"].nunique() > 2 and set(compressed["method"]) == {"bijsvd"}
    models, named = list(summary["model"].unique()), summary.assign(label=_line_names(summary, over_share))
    names = list(dict.fromkeys(named.loc[compressed.index, "label"]))
    if len(names) > _MOST_LINES and len(models) == 1:
        return _list(named, note)
    colors = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    style = {
        name: {"color": colors[index % len(colors)], "marker": "osD^vP*X<>"[index % 10], "label": name}
        for index, name in enumerate(names)
    }
    columns = max(1, min(4 * len(models), (80 + 40 * len(models)) // (max(map(len, names), default=0) + 8)))
    height = 5.4 + 0.2 * max(0, len(names) / columns - 4)
    figure = Figure(figsize=(3 + 5 * len(models), height), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines = named[named["model"] == model]
        of_dense = lines["method"] == "dense"
        _panel(axes, lines[~of_dense], "left_share" if over_share else "compression_factor", style)
        for dashes, row in zip(cycle(["--", ":", "-."]), lines[of_dense].to_dict("records"), strict=False):
            axes.axhline(row["top1_mean"], linestyle=dashes, color="black", linewidth=1, label=row["label"])
        axes.set_title(f"{model} on {' / '.join(summary['data'].unique())}")
    untrained, spread = (summary["schedule"] == "no training").all(), summary["n"].max() > 1
    accuracy = "raw top-1 accuracy, %" if untrained else "top-1 accuracy, %"
    figure.axes[0].set_ylabel(f"{accuracy}, mean ± std over seeds" if spread and not untrained else accuracy)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", frameon=False, ncols=columns, fontsize="small")
    figure.supxlabel(textwrap.fill(note, 150 * len(models)), fontsize=6)
    return figure


def _list(named: pd.DataFrame, note: str) -> Figure:
    """Every row on a line of its own, the smallest networks last, with its accuracy as a point and as a number."""
    named = named.assign(factor=named["compression_factor"].round()).sort_values(["factor", "top1_mean"])
    factors = list(named["factor"].unique())
    figure = Figure(figsize=(9, 0.25 * len(named) + 0.5 * len(factors) + 1.5), layout="constrained")
    heights = [len(rows) + 1 for _, rows in named.groupby("factor")]
    panels = figure.subplots(len(factors), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (factor, rows) in zip(panels, named.groupby("factor"), strict=True):
        places = range(len(rows))
        axes.errorbar(rows["top1_mean"], places, xerr=rows["top1_std"].fillna(0), fmt="o", capsize=3)
        for place, accuracy in zip(places, rows["top1_mean"], strict=True):
            axes.annotate(f"{accuracy:.2f}", (accuracy, place), (-8, 0), textcoords="offset points", **_BESIDE)
        axes.set_yticks(places, rows["label"], fontsize="small")
        axes.set_ylim(-0.8, len(rows) - 0.2)
        axes.set_title(f"CF {factor:g}", fontsize="medium", loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = named["top1_mean"].min(), named["top1_mean"].max()
    panels[-1].set_xlim(low - 0.15 * (high - low), high + 0.05 * (high - low))  # room for the numbers
    panels[-1].set_xlabel("top-1 accuracy, %")
    figure.suptitle(f"{named['model'].iloc[0]} on {' / '.join(named['data'].unique())}")
    figure.supxlabel(textwrap.fill(note, 180), fontsize=6)
    return figure


def _line_names(summary: pd.DataFrame, over_share: bool) -> list[str]:
    """The line of its network's panel that each row belongs to."""
    differing = [name for name in differing_names(summary) if name not in ("model", "baseline_sha256")]
    words = schedule_words(summary["schedule"])
    names = []
    for row in summary.to_dict("records"):
        conditions_of = [str(words.get(row[name], row[name])) for name in differing if not pd.isna(row[name])]
        swept = over_share and row["method"] != "dense"
        names.append(", ".join([f"rank_rate {row['rank_rate']:g}" if swept else label(row), *conditions_of]))
    return names


def _panel(axes: Axes, lines: pd.DataFrame, x: str, style: Mapping[str, Mapping[str, Any]]) -> None:
    """The lines of one network, in the `style` of their labels."""
    for name, line in lines.groupby("label", sort=False):
        line = line.sort_values(x)
        error = line["top1_std"].fillna(0)
        axes.errorbar(line[x], line["top1_mean"], yerr=error, capsize=3, alpha=0.85, **style[str(name)])
    axes.set_xlabel("left share p" if x == "left_share" else "compression factor (all parameters)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if x != "left_share" and lines[x].max() > 3 * lines[x].min():
        axes.set_xscale("log")
        low, high = 0.8 * lines[x].min(), 1.2 * lines[x].max()
        ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500) if low < tick < high]
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)


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
