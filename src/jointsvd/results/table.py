"""Result rows as a table that a stranger can read, beside what the paper prints for them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from jointsvd.results import paper
from jointsvd.results.paired import difference
from jointsvd.results.rows import UNTRAINED, summarize
from jointsvd.results.words import COLUMNS, label, percent, schedule_words
from jointsvd.training.answers import unpack


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows summarised over seeds, as text, beside what the paper prints for them.

    "against" is a line's accuracy minus that of the network it is compared with, trained alike, with the 95 % interval
    over test images where all rows hold which images were right. What only an expert needs stays in results.csv.
    """
    summary = summarize(rows)
    differing = differing_names(summary)
    words = schedule_words(summary["schedule"])
    lines = []
    for row in summary.to_dict("records"):
        line = {COLUMNS.get(name, name): str(words.get(row[name], row[name])) for name in differing}
        line["method"] = label(row)
        line["rank rate"] = "" if pd.isna(row["rank_rate"]) else f"{row['rank_rate']:g}"
        lines.append(line | _sizes(row, rows) | _accuracies(row, rows) | _differences(row, rows) | _papers(row, rows))
        if "budget" in set(summary["method"]) and row["method"] != "dense":
            lines[-1]["seconds to compress"] = f"{row['decompose_seconds']:.0f}"
    names = sorted(dict.fromkeys(name for line in lines for name in line), key=_place)
    table = pd.DataFrame(lines, columns=names).fillna("")
    return table.loc[:, (table != "").any()]


def _place(name: str) -> int:
    """Where a column stands: accuracies side by side, differences side by side, the paper's numbers last."""
    starts = ("parameters", "times", "million", "accuracy", "best", "against", "seconds", "the paper")
    return next((place for place, start in enumerate(starts) if name.startswith(start)), -1)


def _sizes(row: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, str]:
    """How many times smaller than the dense network; FLOPs as they are where the rows have no dense network."""
    dense = rows[(rows["method"] == "dense") & _equal(row, rows, ["model", "data", "image_size"])]
    sizes = {"times fewer parameters": f"{row['compression_factor']:.2f}"}
    if dense.empty:
        sizes["million FLOPs"] = f"{row['flops'] / 1e6:,.0f}"
    else:
        sizes["times fewer FLOPs"] = f"{dense['flops'].iloc[0] / row['flops']:.2f}"
    return sizes | {"parameters": f"{row['num_parameters']:,}"}


def _accuracies(row: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, str]:
    """Top-1 before and after training; the best epoch's where that is not always the last."""
    found = {}
    if not row["from_scratch"]:
        draws = f" ± {row['raw_std']:.2f} (n={row['n']})" if row["raw_std"] > 0 else ""
        found["accuracy without training, %"] = percent(row["raw_top1"]) + draws
    if row["schedule"] != UNTRAINED:
        spread = f" ± {row['top1_std']:.2f}" if row["n"] > 1 else ""
        found["accuracy after training, %"] = f"{row['top1_mean']:.2f}{spread} (n={row['n']})"
        if (rows["best_top1"] > rows["top1"]).any():
            found["best after any epoch, %"] = percent(row["best_top1"])
    return found


def _differences(row: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, str]:
    """Accuracy minus that of the dense network, and of plain SVD, trained alike."""
    paired = bool(rows["correct"].notna().all())
    ours = rows[rows["config_id"] == row["config_id"]]
    columns = {}
    for name, other in (("dense", control_of(row, rows)), ("SVD", svd_of(row, rows))):
        if row["method"] == "dense" or other.empty or (name == "SVD" and row["schedule"] == UNTRAINED):
            continue
        if paired:
            found = difference(*(map(unpack, group["correct"], group["num_test"]) for group in (ours, other)))
            columns[f"against {name}, points (95 %)"] = str(found)
        else:
            columns[f"against {name}, points"] = f"{ours['top1'].mean() - other['top1'].mean():+.2f}"
    return columns


def _papers(row: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, str]:
    """What the paper prints, and how far its accuracy after training is from that of its own dense network."""
    kind, when = ("raw_top1", " without training") if row["schedule"] == UNTRAINED else ("top1", "")
    start = f"the paper, {paper.dataset(row['data'])}:"
    printed, control = paper.printed(row), control_of(row, rows)
    value = getattr(printed, kind, None)
    columns = {f"{start} accuracy{when}, %": percent(value)}
    dense = None if control.empty else paper.printed(control.iloc[0])
    if row["method"] != "dense" and kind == "top1" and value is not None and dense is not None:
        columns[f"{start} against dense, points"] = f"{value - (dense.top1 or 0):+.2f}"
    return columns


def control_of(row: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the dense network that a row is compared with: same data and schedule, same starting point."""
    names = ["model", "data", "image_size", "schedule", "baseline_sha256", "from_scratch"]
    return rows[(rows["method"] == "dense") & _equal(row, rows, names)]


def svd_of(row: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of plain SVD that a joint method is compared with: as `control_of`, and the same layers at the same
    rank rate; none for SVD itself and for budgets."""
    same = (rows["method"] == "svd") & (row["method"] not in ("svd", "budget"))
    names = ["model", "data", "image_size", "schedule", "baseline_sha256", "from_scratch", "rank_rate", "hid", "layers"]
    return rows[same & _equal(row, rows, names)]


def _equal(row: Mapping[str, Any], rows: pd.DataFrame, names: Iterable[str]) -> pd.Series:
    same = pd.Series(True, index=rows.index)
    for name in names:
        same &= (rows[name] == row[name]) | (rows[name].isna() & pd.isna(row[name]))
    return same


def differing_names(summary: pd.DataFrame) -> list[str]:
    """Conditions that are not the same in all lines, beyond what the method and its rank rate say."""
    named = ["model", "data", "image_size", "layers", "iterations", "schedule", "precision", "calibration_images"]
    if summary["model"].nunique() == 1:  # else it differs with the model
        named.append("baseline_sha256")
    decomposed = summary[summary["method"] != "dense"]
    per_method = {"layers": decomposed, "iterations": decomposed[decomposed["method"] == "bijsvd"]}
    per_method["calibration_images"] = summary[summary["method"] == "budget"]
    lines = {name: per_method.get(name, summary) for name in named}
    return [name for name in named if name in lines[name] and lines[name][name].nunique(dropna=False) > 1]


def conditions(rows: pd.DataFrame) -> str:
    """What every number of the table was measured under, in a few sentences."""

    def all_of(name: str) -> str:
        return " / ".join(f"{value:,}" if name.startswith("num_") else str(value) for value in rows[name].unique())

    several = [name for name in ("model", "data") if rows[name].nunique() > 1]
    baselines = [
        " ".join(
            [
                *(row[name] for name in several),
                f"{row['baseline_top1']:.2f} % after {row['baseline_schedule']} (sha256 {row['baseline_sha256'][:12]})",
            ]
        )
        for row in rows[~rows["from_scratch"]].drop_duplicates("baseline_sha256").to_dict("records")
    ]
    start = f"Dense network: {'; '.join(baselines)}." if baselines else "All networks start from random weights."
    notes = "".join(
        f" {model} is not in the paper: an extension." for model in rows["model"].unique() if not paper.has(model)
    )
    if "imagenet" in set(rows["data"]):
        notes += " The paper's table VI contradicts itself: its FLOPs fit these rank rates, its CFs fit 0.075 and 0.2."
    return (
        f"{all_of('model')} on {all_of('data')} ({all_of('image_size')} pixels a side, {all_of('num_train')} training "
        f"and {all_of('num_test')} test images). {start} {_training(rows)} "
        f"{all_of('precision')}, {all_of('processor')}.{notes}"
    )


def _training(rows: pd.DataFrame) -> str:
    """The schedules, what they share said once, and where calibration images came from."""
    schedules = [schedule for schedule in rows["schedule"].unique() if schedule != UNTRAINED]
    text = "Nothing was trained."
    if schedules:
        parts = [schedule.split(", ") for schedule in schedules]
        common = [part for part in parts[0][1:] if all(part in other[1:] for other in parts)]
        apart = " / ".join(", ".join(part for part in words if part not in common) for words in parts)
        also = ", the dense network too" if (rows["method"] == "dense").any() else ""
        seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
        joined = "; each with " if len(schedules) > 1 else ", "
        text = f"Training{also}: {joined.join([apart, ', '.join(common)])}; seeds {seeds}."
        if (rows["best_top1"] > rows["top1"]).any():
            text += " Best: highest after any epoch of any seed, on the test set, as the paper reports it."
    if "calibration_images" in rows and (images := rows["calibration_images"].dropna().unique()).size:
        numbers = " / ".join(f"{number:,.0f}" for number in images)
        text += f" Calibration: {numbers} unlabelled training images, drawn by the seed."
    return text
