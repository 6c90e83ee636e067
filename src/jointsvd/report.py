"""Tables and pictures from result rows, beside what the paper prints; the same rows to W&B."""

import textwrap
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jointsvd import paper
from jointsvd.files import write_atomic
from jointsvd.results import collect, summarize
from jointsvd.tracking import log_summary

_LABELS = {"dense": "dense (control)", "svd": "SVD", "rjsvd1": "RJSVD-1", "rjsvd2": "RJSVD-2", "ljsvd": "LJSVD"}


def report(folder: Path, logger: Mapping[str, Any]) -> pd.DataFrame:
    """Print the table of the rows in `folder`; save results.csv, table.md and accuracy.png there; log it to W&B.

    logger: the logger configuration; only wandb's does anything. Returns the table.
    """
    rows = collect(folder)
    summary = summarize(rows)
    table = readable(summary)
    note = conditions(rows)
    _print(table, note)
    write_atomic(folder / "table.md", f"{table.to_markdown(index=False, disable_numparse=True)}\n\n{note}\n")
    image = BytesIO()
    picture(summary, note).savefig(image, format="png", dpi=150)
    write_atomic(folder / "accuracy.png", image.getvalue())
    print(f"Saved {folder}/results.csv, table.md and accuracy.png")
    if "_target_" in logger:
        log_summary(folder, table, rows, logger)
    return table


def readable(summary: pd.DataFrame) -> pd.DataFrame:
    """The lines of `summarize` as text, beside the CF and accuracy that the paper prints for them."""
    untrained = (summary["schedule"] == "no training").all()
    differing = _differing(summary)
    lines = []
    for row in summary.to_dict("records"):
        printed = paper.printed(row)
        where = paper.dataset(row["data"])
        line = {name: row[name] for name in differing}
        line |= {
            "method": label(row),
            "rank_rate": "" if row["method"] == "dense" else f"{row['rank_rate']:g}",
            "CF": f"{row['compression_factor']:.2f}",
            "CF, paper's count": f"{row['compression_factor_paper']:.2f}",
            "CF it prints": percent(printed.compression_factor if printed else None),
            "parameters": f"{row['num_parameters']:,}",
            "FLOPs": f"{row['flops'] / 1e8:.2f}e8",
            "raw top-1 %": percent(row["raw_top1"]),
        }
        if untrained:
            line[f"paper's raw, {where} %"] = percent(printed.raw_top1 if printed else None)
        else:
            spread = f" ± {row['top1_std']:.2f}" if row["n"] > 1 else ""
            line["top-1 %"] = f"{row['top1_mean']:.2f}{spread} (n={row['n']})"
            line["best %"] = percent(row["best_top1"])
            line[f"paper's, {where} %"] = percent(printed.top1 if printed else None)
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _differing(summary: pd.DataFrame) -> list[str]:
    """Conditions that are not the same in all lines, beyond what the method column and rank_rate say."""
    named = ["model", "data", "image_size", "layers", "iterations", "schedule", "precision", "baseline_sha256"]
    decomposed = summary[summary["method"] != "dense"]
    per_method = {"layers": decomposed, "iterations": decomposed[decomposed["method"] == "bijsvd"]}
    return [name for name in named if per_method.get(name, summary)[name].nunique(dropna=False) > 1]


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def label(row: Mapping[str, Any]) -> str:
    """A row's method as the paper writes it."""
    text = _LABELS.get(row["method"]) or f"Bi-JSVD_{row['left_share']:g}"
    return text if row["hid"] != "dense" else f"{text}, HID dense"


def conditions(rows: pd.DataFrame) -> str:
    """What every number of the table was measured under, in one sentence."""

    def all_of(name: str) -> str:
        return " / ".join(str(value) for value in rows[name].unique())

    baselines = [
        f"{row['baseline_top1']:.2f} % after {row['baseline_schedule']} (sha256 {row['baseline_sha256'][:12]})"
        for row in rows.drop_duplicates("baseline_sha256").to_dict("records")
    ]
    notes = "".join(
        f" {model} is not in the paper: an extension." for model in rows["model"].unique() if not paper.has(model)
    )
    if "imagenet" in set(rows["data"]):
        notes += " The paper's table VI contradicts itself: its FLOPs fit these rank rates, its CFs fit 0.075 and 0.2."
    if (rows["schedule"] == "no training").all():
        tuning = "No fine-tuning."
    else:
        tuning = (
            f"Fine-tuning, dense control too: {all_of('schedule')}; seeds {all_of('seed').replace(' / ', ', ')}. Best: "
            "highest after any epoch, on the test set, as the paper reports it."
        )
    first = rows.iloc[0]
    return (
        f"{all_of('model')} on {all_of('data')} ({all_of('image_size')} pixels a side, {first['num_train']:,} training "
        f"and {first['num_test']:,} test images). Dense network: {'; '.join(baselines)}. {tuning} "
        f"{all_of('precision')}, {all_of('processor')}.{notes}"
    )


def picture(summary: pd.DataFrame, note: str) -> Figure:
    """Accuracy against CF, a line a method, the dense network fine-tuned alike dashed."""
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    compressed = summary[summary["method"] != "dense"]
    differing = _differing(summary)
    names = [", ".join([label(row), *(str(row[name]) for name in differing)]) for row in compressed.to_dict("records")]
    named = compressed.assign(label=names)
    for index, (name, lines) in enumerate(named.groupby("label", sort=False)):
        lines = lines.sort_values("compression_factor")
        axes.errorbar(
            lines["compression_factor"],
            lines["top1_mean"],
            yerr=lines["top1_std"].fillna(0),
            marker="osD^vP*X<>"[index % 10],
            capsize=3,
            alpha=0.85,
            label=name,
        )
    for row in summary[summary["method"] == "dense"].to_dict("records"):
        axes.axhline(row["top1_mean"], linestyle="--", color="black", linewidth=1, label="dense (control)")
    model, data = (" / ".join(summary[name].unique()) for name in ("model", "data"))
    axes.set(title=f"{model} on {data}", xlabel="compression factor (all parameters)")
    untrained = (summary["schedule"] == "no training").all()
    axes.set_ylabel("raw top-1 accuracy, %" if untrained else "top-1 accuracy, %, mean ± std over seeds")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, ncols=4, fontsize="small")
    figure.supxlabel(textwrap.fill(note, 150), fontsize=6)
    return figure


def _print(table: pd.DataFrame, note: str) -> None:
    grid = Table(caption=note)
    for column in table.columns:
        grid.add_column(column, justify="left" if column == "method" else "right")
    for line in table.itertuples(index=False):
        grid.add_row(*map(str, line))
    console = Console()
    # a pipe or a log has no width of its own, and a wrapped table cannot be read
    Console(width=max(console.width, 170) if not console.is_terminal else None).print(grid)
