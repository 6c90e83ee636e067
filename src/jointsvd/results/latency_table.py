"""Rows of figure 6 as a readable table beside the paper's milliseconds, and a picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.results import paper
from jointsvd.results.pictures import BLACK, colors_of, headline, speed_bars, styled
from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.words import label, short_label, spelled


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
        first = dense.loc[row["model"]]
        lines.append(
            {
                "network": row["model"],
                "method": label(row),
                "rank rate": "" if row["method"] == "dense" else f"{row['rank_rate']:g}",
                "times fewer parameters": f"{row['compression_factor']:.2f}",
                "times fewer FLOPs": f"{first['flops'] / row['flops']:.2f}",
                "ms (median ± IQR)": f"{row['milliseconds']:.2f} ± {row['milliseconds_iqr']:.2f}",
                "times faster": f"{first['milliseconds'] / row['milliseconds']:.2f}",
                "the paper: ms": "" if printed is None else f"{printed[0]:.2f}",
                "the paper: times faster": "" if printed is None else f"{printed[1] / printed[0]:.2f}",
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


@styled
def picture(rows: pd.DataFrame) -> Figure:
    """A panel a network: how many times faster each method makes it here and in the paper, beside its FLOPs."""
    models = list(rows["model"].unique())
    others = rows[rows["method"] != "dense"]
    figure = Figure(figsize=(1.5 + 2.9 * len(models), 1.5 + 0.28 * len(others) / len(models)))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        dense = rows[(rows["model"] == model) & (rows["method"] == "dense")].iloc[0]
        lines = others[others["model"] == model]
        names = [short_label(row) for row in lines.to_dict("records")]
        faster, fewer = (list(dense[what] / lines[what]) for what in ("milliseconds", "flops"))
        speed_bars(axes, faster, fewer, colors_of(names))
        for place, row in enumerate(lines.to_dict("records")):
            if printed := paper.latency(row):
                axes.plot(printed[1] / printed[0], place, "o", color="white", markeredgecolor=BLACK)
        axes.set_title(f"{spelled(model)}, dense {dense['milliseconds']:.1f} ms")
        rates = [f"{name}, rank rate {rate:g}" for name, rate in zip(names, lines["rank_rate"], strict=True)]
        axes.set_yticks(range(len(lines)), rates)
    headline(figure, "Times faster than dense on one core: here (bars), in the paper (circles), by FLOPs (lines)")
    return figure
