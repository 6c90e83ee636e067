"""Result rows as a readable table beside what the paper prints, and the sentence of conditions below it."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from jointsvd.results import paper
from jointsvd.results.paired import difference
from jointsvd.results.rows import summarize
from jointsvd.training.answers import unpack

_LABELS = {
    "dense": "dense (control)",
    "svd": "SVD",
    "tucker2": "Tucker-2",
    "rjsvd1": "RJSVD-1",
    "rjsvd2": "RJSVD-2",
    "ljsvd": "LJSVD",
    "budget": "ours",
}


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows summarised over seeds, as text, beside what the paper prints for them.

    "drop" is a line's accuracy minus that of its own dense control, fine-tuned alike, with the 95 % interval over test
    images where rows hold the answers; "drop - paper's" sets it against the drop from the paper's own dense network.
    """
    summary = summarize(rows)
    untrained = (summary["schedule"] == "no training").all()
    differing = differing_names(summary)
    words = schedule_words(summary["schedule"])
    lines = []
    for row in summary.to_dict("records"):
        printed = paper.printed(row)
        where = paper.dataset(row["data"])
        line = {name: words.get(row[name], row[name]) for name in differing}
        line |= {
            "method": label(row),
            "rank_rate": "" if pd.isna(row["rank_rate"]) else f"{row['rank_rate']:g}",
            "CF": f"{row['compression_factor']:.2f}",
            "CF, paper's count": f"{row['compression_factor_paper']:.2f}",
            "CF it prints": percent(printed.compression_factor if printed else None),
            "parameters": f"{row['num_parameters']:,}",
            "FLOPs": f"{row['flops'] / 1e8:.2f}e8",
        }
        if not row["from_scratch"]:
            draws = f" ± {row['raw_std']:.2f} (n={row['n']})" if row["raw_std"] > 0 else ""
            line["raw top-1 %"] = percent(row["raw_top1"]) + draws
        if untrained:
            line[f"paper's raw, {where} %"] = percent(printed.raw_top1 if printed else None)
        else:
            spread = f" ± {row['top1_std']:.2f}" if row["n"] > 1 else ""
            line["top-1 %"] = f"{row['top1_mean']:.2f}{spread} (n={row['n']})"
            line["best %"] = percent(row["best_top1"])
            line[f"paper's, {where} %"] = percent(printed.top1 if printed else None)
        line |= _drops(row, rows, printed, untrained)
        if "budget" in set(summary["method"]) and row["method"] != "dense":
            line["seconds to compress"] = f"{row['decompose_seconds']:.0f}"
        lines.append(line)
    table = pd.DataFrame(lines).fillna("")
    return table.loc[:, (table != "").any()]


def _drops(
    row: Mapping[str, Any], rows: pd.DataFrame, printed: paper.Printed | None, untrained: bool
) -> dict[str, str]:
    """Columns that compare a line with its own dense control, and with what the paper lost."""
    control = control_of(row, rows)
    if row["method"] == "dense" or control.empty:
        return {}
    ours = rows[rows["config_id"] == row["config_id"]]
    drop = float(ours["top1"].mean() - control["top1"].mean())
    text = f"{drop:+.2f}"
    if ours["correct"].notna().all() and control["correct"].notna().all():
        text = str(difference(*(map(unpack, group["correct"], group["num_test"]) for group in (ours, control))))
    columns = {"drop (95 %)": text}
    svd = svd_of(row, rows)
    if not untrained and len(svd) and ours["correct"].notna().all() and svd["correct"].notna().all():
        paired = difference(*(map(unpack, group["correct"], group["num_test"]) for group in (ours, svd)))
        columns["- SVD (95 %)"] = str(paired)
    dense = paper.printed(control.iloc[0])
    kind = "raw_top1" if untrained else "top1"
    if printed and dense and getattr(printed, kind) is not None:
        columns["drop - paper's"] = f"{drop - (getattr(printed, kind) - getattr(dense, kind)):+.2f}"
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
    """Conditions that are not the same in all lines, beyond what the method column and rank_rate say."""
    named = ["model", "data", "image_size", "layers", "iterations", "schedule", "precision", "calibration_images"]
    if summary["model"].nunique() == 1:  # else it differs with the model
        named.append("baseline_sha256")
    decomposed = summary[summary["method"] != "dense"]
    per_method = {"layers": decomposed, "iterations": decomposed[decomposed["method"] == "bijsvd"]}
    per_method["calibration_images"] = summary[summary["method"] == "budget"]
    lines = {name: per_method.get(name, summary) for name in named}
    return [name for name in named if name in lines[name] and lines[name][name].nunique(dropna=False) > 1]


def percent(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2f}"


def schedule_words(schedules: Iterable[str]) -> dict[str, str]:
    """Each schedule by its first words, the epochs, and where these are the same by what else they do not share; the
    sentence below the table has all of it."""
    parts = {schedule: schedule.split(", ") for schedule in schedules}
    if len({first for first, *_ in parts.values()}) == len(parts):
        return {schedule: first for schedule, (first, *_) in parts.items()}
    common = set.intersection(*(set(rest) for _, *rest in parts.values() if rest))
    return {
        schedule: ", ".join([first, *(part for part in rest if part not in common)])
        for schedule, (first, *rest) in parts.items()
    }


def label(row: Mapping[str, Any]) -> str:
    """A row's method as the paper writes it."""
    text = _LABELS.get(row["method"], "")
    if row["method"] == "bijsvd":
        text = f"Bi-JSVD_{row['left_share']:g}"
    if row["method"] == "nc_ctd":
        text = f"NC_CTD, own/shared {row['own_per_shared']:g}"
    if row["method"] == "budget":
        words = {"budget_flops": "{:g} times fewer FLOPs", "budget_faster": "{:g} times faster"}
        words |= {"budget_latency_ms": "{:g} ms"}
        text += "".join(f", {word.format(row[name])}" for name, word in words.items() if (row.get(name) or 0) > 0)
        text += f", ranks of {row['rank_multiple']:g}" if (row.get("rank_multiple") or 1) > 1 else ""
        text += ", no sharing" * (not row["share"]) + ", no refit" * (not row["refit"])
    elif (row.get("calibration_images") or 0) > 0:
        text += ", batch norms again"
    return text if row["hid"] != "dense" else f"{text}, HID dense"


def conditions(rows: pd.DataFrame) -> str:
    """What every number of the table was measured under, in one sentence."""

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
    if (rows["schedule"] == "no training").all():
        tuning = "No fine-tuning."
    else:
        what, seeds = "Fine-tuning" if baselines else "Training", all_of("seed").replace(" / ", ", ")
        control = ", dense control too" if (rows["method"] == "dense").any() else ""
        tuning = (
            f"{what}{control}: {all_of('schedule')}; seeds {seeds}. Best: highest after any epoch, on the "
            "test set, as the paper reports it."
        )
    if "calibration_images" in rows and (images := rows["calibration_images"].dropna().unique()).size:
        numbers = " / ".join(f"{number:,.0f}" for number in images)
        tuning += f" Calibration: {numbers} unlabelled training images, drawn by the seed."
    return (
        f"{all_of('model')} on {all_of('data')} ({all_of('image_size')} pixels a side, {all_of('num_train')} training "
        f"and {all_of('num_test')} test images). {start} {tuning} "
        f"{all_of('precision')}, {all_of('processor')}.{notes}"
    )
