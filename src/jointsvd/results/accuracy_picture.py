"""Accuracy against compression factor: what is compared in colour, the rest in grey."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jointsvd.results.pictures import (
    BLACK,
    BLUE,
    COLORS,
    GREY,
    PALE,
    SPARE,
    End,
    factor_axis,
    headline,
    label_ends,
    styled,
)
from jointsvd.results.rows import UNTRAINED
from jointsvd.results.table import differing_names
from jointsvd.results.words import label, schedule_words, short_label, spelled

AXES = {
    "compression_factor": "compression factor (times fewer parameters)",
    "flops_factor": "times fewer FLOPs",
    "left_share": "left share p",
}
_MOST_PANELS = 3  # of a network; more are drawn as lists
_MOST_COLORS = 6
_WINDOW = 6.0  # points of accuracy below the best that a list shows to scale


@styled
def picture(summary: pd.DataFrame, x: str = "compression_factor") -> Figure:
    """A panel a network and schedule, a line a method: accuracy against the column x, a key of `AXES`; against the left
    share where that of Bi-JSVD was swept. Of more schedules than panels, a row each (`_list`)."""
    compressed = summary[summary["method"] != "dense"]
    over_share = compressed["left_share"].nunique() > 2 and set(compressed["method"]) == {"bijsvd"}
    named = summary.assign(line=_line_names(summary, over_share), training=_after(summary["schedule"]))
    groups = list(named.groupby(["model", "training"], sort=False))
    models = named["model"].nunique()
    if len(groups) > _MOST_PANELS * models:
        return _list(named)
    colors = _colors(list(dict.fromkeys(named.loc[compressed.index, "line"])))
    x = "left_share" if over_share else x
    widths = [2 + rows[x].round().nunique() for _, rows in groups]
    figure = Figure(figsize=(2.5 + 0.9 * sum(widths), 4.6))
    panels = figure.subplots(1, len(groups), sharey=models == 1, squeeze=False, width_ratios=widths)[0]
    for axes, (_, rows) in zip(panels, groups, strict=True):
        axes.set_title("; ".join([spelled(rows["model"].iloc[0])] * (models > 1) + [rows["training"].iloc[0]]))
        _panel(axes, rows, x, colors)
    spread = summary["n"].max() > 1 and (summary["schedule"] != UNTRAINED).any()
    panels[0].set_ylabel("accuracy, %" + ", mean ± standard deviation" * bool(spread))
    headline(figure, _title(summary))
    for axes, (_, rows) in zip(panels, groups, strict=True):
        label_ends(axes, _ends(rows[rows["method"] != "dense"], x, colors))
    return figure


def _title(summary: pd.DataFrame) -> str:
    models, data = (", ".join(map(spelled, summary[name].unique())) for name in ("model", "data"))
    return f"{models} on {data}: the accuracy that is left"


def _after(schedules: pd.Series) -> list[str]:
    words = schedule_words(schedules)
    return ["without training" if name == UNTRAINED else f"after {words[name]}" for name in schedules]


def _line_names(summary: pd.DataFrame, over_share: bool) -> list[str]:
    """The line of its panel that each row belongs to."""
    apart = ("model", "schedule", "baseline_sha256")
    differing = [name for name in differing_names(summary) if name not in apart]
    names = []
    for row in summary.to_dict("records"):
        also = [str(row[name]) for name in differing if not pd.isna(row[name])]
        swept = over_share and row["method"] != "dense"
        names.append(", ".join([f"rank rate {row['rank_rate']:g}" if swept else short_label(row), *also]))
    return names


def _colors(names: Sequence[str]) -> dict[str, str]:
    """Those of the methods that are compared; of few lines, each has one."""
    colors = {name: COLORS[name] for name in names if name in COLORS}
    if len(names) <= _MOST_COLORS:
        free = [color for color in SPARE if color not in colors.values()]
        colors |= dict(zip([name for name in names if name not in colors], free, strict=False))
    return {name: colors.get(name, PALE) for name in names}


def _panel(axes: Axes, rows: pd.DataFrame, x: str, colors: dict[str, str]) -> None:
    """The lines of one network and schedule, the dense network dashed."""
    dense, lines = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
    for name, line in lines.groupby("line", sort=False):
        line, color = line.sort_values(x), colors[str(name)]
        options: dict[str, Any] = {"color": color, "zorder": 2.5 if color == PALE else 3}
        axes.plot(line[x], line["top1_mean"], marker="o", label=name, **options)
        if color != PALE:
            deviation = line["top1_std"].fillna(0)
            axes.errorbar(line[x], line["top1_mean"], deviation, fmt="none", elinewidth=0.8, alpha=0.7, **options)
    for row in dense.to_dict("records"):
        axes.axhline(row["top1_mean"], linestyle=(0, (4, 2)), color=BLACK, linewidth=1, label=row["line"])
        text = f"{row['line']} {row['top1_mean']:.2f} %"
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        above = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.annotate(text, (1, row["top1_mean"]), (0, 4), ha="right", fontsize=8.5, bbox=above, **place)
    axes.set_xlabel(AXES[x])
    if x != "left_share" and len(lines):
        factor_axis(axes, list(lines[x]))
    axes.margins(y=0.08)


def _ends(lines: pd.DataFrame, x: str, colors: dict[str, str]) -> list[End]:
    ends = []
    for name, line in lines.groupby("line", sort=False):
        last = line.sort_values(x).iloc[-1]
        grey = colors[str(name)] == PALE
        ends.append(End(last[x], last["top1_mean"], str(name), *((GREY, 7.0) if grey else (colors[str(name)], 8.5))))
    return ends


def _list(named: pd.DataFrame) -> Figure:
    """Every row on a line of its own, a panel for each size with and without training. What is far below the best
    stands at the left edge, with its number."""
    named = named.assign(factor=named["compression_factor"].round(), trained=named["schedule"] != UNTRAINED)
    groups = list(named.sort_values("top1_mean").groupby(["factor", "trained"]))
    heights = [len(rows) + 1.6 for _, rows in groups]
    figure = Figure(figsize=(8.6, 0.2 * sum(heights) + 0.9))
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    best = named["top1_mean"].max()
    low = max(named["top1_mean"].min(), best - _WINDOW)
    for axes, ((factor, _), rows) in zip(panels, groups, strict=True):
        names, common = _apart([f"{label(row)}, {row['training']}" for row in rows.to_dict("records")])
        axes.set_title(f"{factor:g} times fewer parameters: {common}")
        for place, accuracy in enumerate(rows["top1_mean"]):
            at, marker, color = ((accuracy, place), "o", BLUE) if accuracy >= low else ((low, place), "<", GREY)
            axes.plot(*at, marker, color=color)
            axes.annotate(f"{accuracy:.2f}", at, (7, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis="y", visible=False)
    panels[-1].set_xlim(low - 0.05 * (best - low), best + 0.12 * (best - low))
    panels[-1].set_xlabel("accuracy, %" + f" (triangles: below {low:.0f})" * bool(named["top1_mean"].min() < low))
    headline(figure, _title(named))
    return figure


def _apart(names: Sequence[str]) -> tuple[list[str], str]:
    """What names made of parts do not share, and what they share."""
    parts = [name.split(", ") for name in names]
    common = [part for part in parts[0] if all(part in other for other in parts)] if len(parts) > 1 else []
    rest = [", ".join(part for part in words if part not in common) or "as it is" for words in parts]
    return rest, ", ".join(common)
