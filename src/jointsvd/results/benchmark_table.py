"""Rows of the benchmark as a readable table and a picture."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.results.rendered import write_picture, write_table


def render(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, str]:
    """Write table.md and benchmark.png of `rows` to `folder`; returns the table and the sentence below it."""
    table, note = readable(rows), conditions(rows)
    write_table(folder / "table.md", table, note)
    write_picture(folder / "benchmark.png", picture(rows))
    return table, note


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Each network beside the dense one in the same engine, batch and threads. "FLOPs realised": how many times faster
    over how many times fewer FLOPs."""
    cell = ["engine", "batch_size", "threads"]
    joined = rows.merge(rows[rows["network"] == "dense"], on=cell, suffixes=("", "_dense"))
    lines = []
    for row in joined.to_dict("records"):
        faster, fewer = (row[f"{what}_dense"] / row[what] for what in ("milliseconds", "flops"))
        lines.append(
            {
                "network": row["network"],
                "engine": row["engine"],
                "batch": row["batch_size"],
                "threads": row["threads"],
                "CF": f"{row['num_parameters_dense'] / row['num_parameters']:.2f}",
                "file, MB": f"{row['file_bytes'] / 1e6:.2f}",
                "top-1 %": f"{row['top1']:.2f}",
                "ms (median ± IQR)": f"{row['milliseconds']:.2f} ± {row['milliseconds_iqr']:.2f}",
                "times faster": f"{faster:.2f}",
                "times fewer FLOPs": f"{fewer:.2f}",
                "FLOPs realised": "" if row["network"] == "dense" else f"{faster / fewer:.2f}",
            }
        )
    return pd.DataFrame(lines)


def conditions(rows: pd.DataFrame) -> str:
    """What the numbers were measured under."""
    first, days = rows.iloc[0], sorted({date[:10] for date in rows["date"]})
    return (
        f"{first['data']}, {first['image_size']} pixels a side, top-1 on the whole test set. Float32 but for int8; "
        f"median of {rows['passes'].min()} to {rows['passes'].max()} passes, an engine's networks one after the other. "
        f"{first['processor'].split(',')[0]}, {first['versions']}, {' and '.join(days)}."
    )


def picture(rows: pd.DataFrame) -> Figure:
    """Accuracy against latency at the smallest batch and fewest threads; a bubble's area goes with the file's size."""
    small = rows[(rows["batch_size"] == rows["batch_size"].min()) & (rows["threads"] == rows["threads"].min())]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, (network, lines) in enumerate(small.groupby("network", sort=False)):
        areas = 2000 * lines["file_bytes"] / rows["file_bytes"].max() + 8
        axes.scatter(lines["milliseconds"], lines["top1"], s=areas, color=f"C{index}", alpha=0.6, label=network)
        for row in lines.to_dict("records"):
            place = (row["milliseconds"], row["top1"])
            slanted: dict[str, Any] = {
                "textcoords": "offset points",
                "fontsize": 6,
                "rotation": 45,
                "rotation_mode": "anchor",
            }
            axes.annotate(row["engine"], place, (2, 6), **slanted)
    axes.set(xscale="log", xlabel="milliseconds of a batch", ylabel="top-1 accuracy, %")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick < 2 * small["milliseconds"].max()]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.7 * small["milliseconds"].min(), 1.5 * small["milliseconds"].max())
    axes.margins(y=0.15)
    axes.set_title(f"batch {small['batch_size'].iloc[0]}, {small['threads'].iloc[0]} thread(s)", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    return figure
