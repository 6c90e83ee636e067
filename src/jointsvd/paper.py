"""What the paper prints, from the CSV files in experiments/paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parents[2] / "experiments" / "paper"
RANK_RATES = (0.04, 0.08)  # behind the larger and the smaller CF of each network
_TABLES = {
    "cifar10": ("table4_cifar10_finetune.csv", "CIFAR-10"),
    "cifar100": ("table5_cifar100_finetune.csv", "CIFAR-100"),
    "imagenet": ("table6_imagenet.csv", "ImageNet"),
}
_METHODS = {"svd": "Tai", "rjsvd1": "RJSVD-1", "rjsvd2": "RJSVD-2", "ljsvd": "LJSVD"}


@dataclass(frozen=True)
class Printed:
    """Accuracy in percent. The CFs of ImageNet belong to other rank rates than its FLOPs, which decide here."""

    top1: float
    raw_top1: float
    compression_factor: float | None = None  # None: the dense network


def dataset(data: str) -> str:
    """The paper's data set that results on `data` stand beside: itself, or CIFAR-10."""
    return _TABLES.get(data, _TABLES["cifar10"])[1]


def has(model: str) -> bool:
    """Whether the paper has this network at all."""
    return model in set(_names(_read("extra_uncompressed_flops.csv")))


def printed(row: Mapping[str, Any]) -> Printed | None:
    """What the paper prints for a row's model, data (see `dataset`), method, rank_rate and left_share, if it does."""
    if row["method"] == "dense":
        table = _read("extra_uncompressed_flops.csv")
        found = table[(table["dataset"] == dataset(row["data"])) & (_names(table) == row["model"])]
        return Printed(*[float(found["top1"].iloc[0])] * 2) if len(found) else None
    table = _read(_TABLES.get(row["data"], _TABLES["cifar10"])[0])
    table = table[_names(table) == row["model"]]
    factors = dict(zip(RANK_RATES, sorted(table["compression_factor"].unique(), reverse=True), strict=False))
    factor = factors.get(row["rank_rate"])
    method = _METHODS.get(row["method"], f"Bi-JSVD_{row['left_share']}")
    found = table[(table["method"] == method) & (table["compression_factor"] == factor)]
    if found.empty or row["hid"] != "decompose" or isinstance(row["layers"], str):
        return None  # the paper chose these layers otherwise
    first = found.iloc[0]
    return Printed(float(first.get("top1_mean", first.get("top1"))), float(first["raw_top1"]), factor)


def _names(table: pd.DataFrame) -> pd.Series:
    return table["network"].str.replace("-", "").str.lower()


@cache
def _read(file: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / file)
