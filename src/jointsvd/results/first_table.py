"""The first thing a reader sees: one small table and one picture, from the rows of two studies."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.results.pictures import BLACK, COLORS, End, factor_axis, headline, label_ends, styled
from jointsvd.results.rows import read_rows, summarize
from jointsvd.results.words import short_label

_STUDIES = ("fashion_mnist_resnet34", "beyond_recovery")
_SHORT_PASS = "1 epoch of 12,000 images,"  # how its schedule begins
_AFTER = "accuracy after one short pass, %"
_RANK_RATE = 0.04
_METHODS = ("SVD", "RJSVD-2", "LJSVD", "Bi-JSVD_0.5")
_BUDGETS = (22.1, 50.0)
_DRAWN = ("SVD", "LJSVD", "Bi-JSVD_0.5", "ours")


def has_first_rows(folder: Path) -> bool:
    """Whether the studies that the table is made of are in `folder`."""
    return all((folder / name / "results.csv").exists() for name in _STUDIES)


def first_table(folder: Path) -> str:
    """Four methods of the paper and two networks of ours below the dense one, in Markdown. The dense network has two
    accuracies after the pass: by the schedule of the paper's methods, and by ours."""
    lines = _short_pass(folder)
    dense = lines[lines["method"] == "dense"]
    chosen = [
        dense.iloc[0],
        *(lines[(lines["label"] == name) & (lines["rank_rate"] == _RANK_RATE)].iloc[0] for name in _METHODS),
        *(lines[lines["budget_params"] == budget].iloc[0] for budget in _BUDGETS),
    ]
    table = [
        {
            "method": row["label"],
            "times fewer parameters": f"{row['compression_factor']:.1f}",
            "times fewer FLOPs": f"{dense['flops'].iloc[0] / row['flops']:.1f}",
            "accuracy without training, %": f"{row['raw_top1']:.2f}",
            _AFTER: f"{row['top1_mean']:.2f}",
        }
        for row in chosen
    ]
    table[0][_AFTER] = " / ".join(f"{accuracy:.2f}" for accuracy in dense["top1_mean"])
    return pd.DataFrame(table).to_markdown(index=False, disable_numparse=True)


@styled
def first_picture(folder: Path) -> Figure:
    """Accuracy after the short pass against compression factor: three methods of the paper, and ours."""
    lines = _short_pass(folder)
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    ends = []
    for name in _DRAWN:
        line = lines[lines["label"] == name].sort_values("compression_factor")
        axes.plot(line["compression_factor"], line["top1_mean"], marker="o", color=COLORS[name])
        last = line.iloc[-1]
        ends.append(End(last["compression_factor"], last["top1_mean"], name, COLORS[name], 9.5))
    accuracy = lines.loc[lines["method"] == "dense", "raw_top1"].iloc[0]
    axes.axhline(accuracy, linestyle=(0, (4, 2)), color=BLACK, linewidth=1)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 9.5}
    axes.annotate(f"dense, as trained: {accuracy:.2f} %", (1, accuracy), (0, 4), ha="right", **place)
    axes.set(xlabel="compression factor (times fewer parameters)", ylabel="accuracy, %")
    axes.margins(y=0.1)
    factor_axis(axes, list(lines.loc[lines["label"].isin(_DRAWN), "compression_factor"]))
    headline(figure, "ResNet-34 on Fashion-MNIST after a short pass over 12,000 images")
    label_ends(axes, ends)
    return figure


def _short_pass(folder: Path) -> pd.DataFrame:
    """The rows after the short pass, summarised over seeds; the dense network has a line for each study."""
    lines = pd.concat([summarize(read_rows(folder / name)) for name in _STUDIES], ignore_index=True)
    lines = lines[lines["schedule"].str.startswith(_SHORT_PASS)]
    return lines.assign(label=[short_label(row) for row in lines.to_dict("records")])
