"""Rows of figure 6 as a readable table beside the paper's milliseconds, and a picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.results import paper
from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.table import label


def render(rows: pd.DataFrame, folder: Path) -> None:
    """Write table.md and latency.png of `rows` to `folder`."""
    write_table(folder / "table.md", readable(rows), conditions(rows))
    write_picture(folder / "latency.png", picture(rows))


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds and ratios to the dense network, beside the paper's."""
    dense = rows[rows["method"] == "dense"].set_index("model")
    lines = []
    for row in rows.to_dict("records"):
        printed = paper.latency(row)
        lines.append(
            {
                "model": row["model"],
                "method": "dense" if row["method"] == "dense" else label(row),
                "rank_rate": "" if row["method"] == "dense" else f"{row['rank_rate']:g}",
                "CF": f"{row['compression_factor']:.2f}",
                "dense / its FLOPs": f"{dense['flops'][row['model']] / row['flops']:.2f}",
                "ms (median ± IQR)": f"{row['milliseconds']:.2f} ± {row['milliseconds_iqr']:.2f}",
                "dense / its ms": f"{dense['milliseconds'][row['model']] / row['milliseconds']:.2f}",
                "paper's ms": "" if printed is None else f"{printed[0]:.2f}",
                "paper's dense / its ms": "" if printed is None else f"{printed[1] / printed[0]:.2f}",
            }
        )
    return pd.DataFrame(lines)


def conditions(rows: pd.DataFrame) -> str:
    """What the numbers were measured under."""
    first = rows.iloc[0]
    return (
        f"Random weights, float32, eager PyTorch, batch {first['batch_size']}, {first['threads']} thread(s) of "
        f"{first['processor'].split(',')[0]}, images {first['input_size']}; median of {first['passes']} "
        f"passes. {first['versions']}, {first['date'][:10]}. The paper's milliseconds are from its own machine."
    )


def picture(rows: pd.DataFrame) -> Figure:
    """Speed-up beside what the FLOPs promise, a panel a network."""
    models = list(rows["model"].unique())
    figure = Figure(figsize=(4 * len(models), 4), layout="constrained")
    table = readable(rows)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines = table[(table["model"] == model) & (table["method"] != "dense")]
        names = lines["method"] + " " + lines["rank_rate"]
        for offset, column in enumerate(("dense / its FLOPs", "dense / its ms", "paper's dense / its ms")):
            values = pd.to_numeric(lines[column], errors="coerce").fillna(0)
            axes.barh([i + 0.27 * offset for i in range(len(lines))], values, height=0.25, label=column)
        axes.set_yticks([i + 0.27 for i in range(len(lines))], names, fontsize="small")
        axes.invert_yaxis()
        axes.set(title=model, xlabel="times faster than dense")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure
