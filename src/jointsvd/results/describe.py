"""What `compress` did to each layer and why, as a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jointsvd.results.pictures import BLUE, GREY, ORANGE, VERMILLION, headline, styled
from jointsvd.results.rendered import write_picture, write_table

COLORS = {"dense": GREY, "alone": BLUE, "left": VERMILLION, "right": ORANGE}
MEANING = {"dense": "dense", "alone": "own U and V", "left": "shared U", "right": "shared V"}


def allocation_table(report: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The lines of `Compressed.report` as text."""
    total = sum(line["parameters"] for line in report), sum(line["flops"] for line in report)
    lines = [
        {
            "layers": _short(line["layers"]),
            "what": MEANING[line["choice"]],
            "rank": line["rank"] or "",
            "break-even rank": line["largest_rank"] or "",
            "parameters": f"{line['parameters']:,}",
            "times fewer parameters": f"{line['dense_parameters'] / line['parameters']:.1f}",
            "% of parameters": f"{100 * line['parameters'] / total[0]:.1f}",
            "% of FLOPs": f"{100 * line['flops'] / total[1]:.1f}",
            "predicted error": f"{line['predicted_error']:.1e}",
            "reached error": f"{line['reached_error']:.1e}",
            "why": reason(line),
        }
        for line in report
    ]
    return pd.DataFrame(lines)


@styled
def allocation_picture(report: Sequence[dict[str, Any]]) -> Figure:
    """A bar for each choice: its share of parameters and of FLOPs, its predicted error; its rank written beside."""
    figure = Figure(figsize=(10.5, 0.2 * len(report) + 1.4))
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(1.2, 1, 1))
    places, colors = range(len(report)), [COLORS[line["choice"]] for line in report]
    titles = {"parameters": "parameters, % (and rank)", "flops": "FLOPs, %", "predicted_error": "predicted error, %"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        total = sum(line[key] for line in report) or 1
        axes.barh(places, [100 * line[key] / total for line in report], color=colors)
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    total = sum(line["parameters"] for line in report) or 1
    for place, line in zip(places, report, strict=True):
        at = (100 * line["parameters"] / total, place)
        panels[0].annotate(f"{line['rank'] or ''}", at, (3, 0), textcoords="offset points", va="center", fontsize=7)
    panels[0].set_yticks(places, [_short(line["layers"]) for line in report], fontsize=7)
    panels[0].set_ylim(len(report) - 0.4, -0.6)
    headline(figure, "Where the parameters, the FLOPs and the error of the compressed network are")
    used = [kind for kind in COLORS if any(line["choice"] == kind for line in report)]
    handles = [Patch(color=COLORS[kind], label=MEANING[kind]) for kind in used]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(used), frameon=False)
    return figure


def describe(report: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """Write layers.md and layers.png of a report to `folder`; returns the table."""
    table = allocation_table(report)
    write_table(folder / "layers.md", table)
    write_picture(folder / "layers.png", allocation_picture(report))
    return table


def _short(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]} ({len(layers)} layers)"


def reason(line: Mapping[str, Any]) -> str:
    """Why the planner chose so, and which channels are gone."""
    channels = line.get("channels") or {}  # older reports have none
    words = [f"{side} {now:,} of {was:,} channels" for side, (now, was) in channels.items()]
    return ", ".join([_why(line), *words])


def _why(line: Mapping[str, Any]) -> str:
    if line["choice"] == "dense":
        return "a rank costs more than it saves" if line["largest_rank"] else "no rank is smaller"
    alike = {"left": "they read alike", "right": "they write alike"}
    return alike.get(line["choice"], "ranks worth their price")
