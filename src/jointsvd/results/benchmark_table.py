"""Rows of the benchmark as a readable table and a picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.results.pictures import colors_of, headline, speed_bars, styled
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
                "images at once": row["batch_size"],
                "threads": row["threads"],
                "times fewer parameters": f"{row['num_parameters_dense'] / row['num_parameters']:.2f}",
                "file, MB": f"{row['file_bytes'] / 1e6:.2f}",
                "accuracy, %": f"{row['top1']:.2f}",
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


@styled
def picture(rows: pd.DataFrame) -> Figure:
    """A panel an engine, at the smallest batch and fewest threads: how many times faster than the dense network there
    each other one is, beside how many times fewer FLOPs it has."""
    small = rows[(rows["batch_size"] == rows["batch_size"].min()) & (rows["threads"] == rows["threads"].min())]
    engines = list(small["engine"].unique())
    figure = Figure(figsize=(2.2 + 1.45 * len(engines), 1.5 + 0.36 * (small["network"].nunique() - 1)))
    panels = figure.subplots(1, len(engines), sharex=True, sharey=True, squeeze=False)[0]
    widest = 1.0
    for axes, engine in zip(panels, engines, strict=True):
        cell = small[small["engine"] == engine]
        dense, others = cell[cell["network"] == "dense"].iloc[0], cell[cell["network"] != "dense"]
        faster, fewer = (list(dense[what] / others[what]) for what in ("milliseconds", "flops"))
        speed_bars(axes, faster, fewer, colors_of(others["network"]))
        widest = max(widest, axes.get_xlim()[1])
        axes.set_title(f"{engine}\ndense {dense['milliseconds']:.1f} ms")
        if axes is panels[0]:
            names = zip(others["network"], others["top1"], strict=True)
            axes.set_yticks(range(len(others)), [f"{name}, {top1:.2f} %" for name, top1 in names])
    panels[0].set_xlim(0, widest)
    images, threads = (int(small[name].iloc[0]) for name in ("batch_size", "threads"))
    where = f"{images} image{'s' * (images > 1)}, {threads} thread{'s' * (threads > 1)}"
    headline(figure, f"Times faster than the dense network (bars) and times fewer FLOPs (lines): {where}")
    return figure
