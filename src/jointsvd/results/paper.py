"""What the paper prints, from the CSV files in experiments/paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from jointsvd.decomposition.svd import NUM_ITERATIONS
from jointsvd.network.methods import METHODS
from jointsvd.results.shipped import shipped

FOLDER = shipped("experiments/paper")
RANK_RATES = (0.04, 0.08)  # behind the larger and the smaller CF of each network
SMALL_CF_RATES = (1.0, 0.5, 0.2, 0.1, 0.05)  # behind figure 5, from its smallest CF to its largest
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
_FINE_TUNED = {
    "CIFAR-10": "table4_cifar10_finetune",
    "CIFAR-100": "table5_cifar100_finetune",
    "ImageNet": "table6_imagenet",
}
_FROM_SCRATCH = {"CIFAR-10": "table7_cifar10_scratch", "CIFAR-100": "table8_cifar100_scratch"}


@dataclass(frozen=True)
class Printed:
    """Accuracy in percent. The CFs of ImageNet belong to other rank rates than its FLOPs, which decide here."""

    top1: float | None
    raw_top1: float | None
    compression_factor: float | None = None  # None: the dense network


def dataset(data: str) -> str:
    """The paper's data set that results on `data` stand beside: itself, or CIFAR-10."""
    return _DATASETS.get(data, "CIFAR-10")


def has(model: str) -> bool:
    """Whether the paper has this network at all."""
    return model in set(_names(_read("extra_uncompressed_flops")))


def printed(row: Mapping[str, Any]) -> Printed | None:
    """What the paper prints for a row, beside the data set that `dataset` names, if it does."""
    where = dataset(row["data"])
    if row["method"] == "dense":
        table = _read("extra_uncompressed_flops")
        found = table[(table["dataset"] == where) & (_names(table) == row["model"])]
        return Printed(*[float(found["top1"].iloc[0])] * 2) if len(found) else None
    if row["method"] == "budget" or (row.get("calibration_images") or 0) > 0:
        return None  # beyond the paper
    if isinstance(row["layers"], str):
        return None  # the paper chose these layers otherwise
    if row["hid"] == "dense":
        return _figure5(row)
    if row["method"] == "bijsvd" and row["iterations"] != NUM_ITERATIONS:
        return _table3(row)
    names = _FROM_SCRATCH if row["from_scratch"] else _FINE_TUNED
    if where not in names:
        return None
    table = _read(names[where])
    table = table[_names(table) == row["model"]]
    factors = dict(zip(RANK_RATES, sorted(table["compression_factor"].unique(), reverse=True), strict=False))
    factor = factors.get(row["rank_rate"])
    found = table[(table["method"] == _method(row)) & (table["compression_factor"] == factor)]
    if found.empty:
        return _table3(row) if row["method"] == "bijsvd" and not row["from_scratch"] else None
    first = found.iloc[0]
    raw = None if row["from_scratch"] else float(first["raw_top1"])
    return Printed(float(first.get("top1_mean", first.get("top1"))), raw, factor)


def latency(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Milliseconds of a decomposed network and of its dense one in figure 6, if it has them."""
    table = _read("figure6_latency")
    table = table[_names(table) == row["model"]]
    factors = dict(zip(RANK_RATES, sorted(table["compression_factor"].unique(), reverse=True), strict=False))
    table = table[table["compression_factor"] == factors.get(row["rank_rate"])].set_index("method")["time_ms"]
    if row["method"] == "dense" or _method(row) not in table:
        return None
    return float(table[_method(row)]), float(table["original"])


def _figure5(row: Mapping[str, Any]) -> Printed | None:
    """Small CFs, ResNet-34 on CIFAR-100, read off the figure."""
    if (row["model"], row["data"]) != ("resnet34", "cifar100") or row["rank_rate"] not in SMALL_CF_RATES:
        return None
    table = _read("figure5_small_cf")
    factor = sorted(table["compression_factor"].unique())[1:][SMALL_CF_RATES.index(row["rank_rate"])]
    method = _method(row).replace("RJSVD-2", "RJSVD")
    found = table[(table["method"] == method) & (table["compression_factor"] == factor)]
    return Printed(float(found["top1_mean"].iloc[0]), None, factor) if len(found) else None


def _table3(row: Mapping[str, Any]) -> Printed | None:
    """Raw accuracy by K and p, ResNet-34 on CIFAR-10 at rank_rate 0.08."""
    table = _read("table3_bijsvd_k")
    found = table[(table["K"] == row["iterations"]) & (table["p"] == row["left_share"])]
    if (row["model"], row["rank_rate"], dataset(row["data"])) != ("resnet34", 0.08, "CIFAR-10") or found.empty:
        return None
    return Printed(None, float(found["raw_top1"].iloc[0]), 13.92)


def _method(row: Mapping[str, Any]) -> str:
    method = METHODS[row["method"]]
    if method.key == "bijsvd":  # with one branch alone it is another method
        other = {0: METHODS["rjsvd2"], 1: METHODS["ljsvd"]}.get(row["left_share"])
        return str(other.paper_label if other else f"{method.paper_label}_{row['left_share']:g}")
    return str(method.paper_label)


def _names(table: pd.DataFrame) -> pd.Series:
    return table["network"].str.replace("-", "").str.lower()


@cache
def _read(file: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{file}.csv")
