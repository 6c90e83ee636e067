"""Rows in words: what a line of a table, a picture or a page calls them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from jointsvd.network.methods import METHODS

COLUMNS = {  # what some columns of results.csv are called in tables
    "model": "network",
    "image_size": "pixels a side",
    "schedule": "training",
    "calibration_images": "calibration images",
    "baseline_sha256": "dense network",
}
_DATA = {
    "digits": "digits",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}
_NETWORKS = {"resnet": "ResNet-", "vgg": "VGG-"}


def spelled(name: str) -> str:
    """A network or data set as it is written: resnet34 is ResNet-34."""
    found = re.fullmatch(r"(resnet|vgg)(\d+)(_bn)?", name)
    return _NETWORKS[found[1]] + found[2] if found else _DATA.get(name, name)


def label(row: Mapping[str, Any]) -> str:
    """The method of a row, with all options that make it another one."""
    words = [short_label(row)]
    if row["method"] == "budget":
        texts = {"budget_flops": "{:g} times fewer FLOPs", "budget_faster": "{:g} times faster"}
        texts |= {"budget_latency_ms": "{:g} ms"}
        words[1:1] = [text.format(row[name]) for name, text in texts.items() if (row.get(name) or 0) > 0]
    return ", ".join(words)


def short_label(row: Mapping[str, Any]) -> str:
    """The method of a row without its budgets: rows of one such label belong to one line of a picture."""
    words = [METHODS[row["method"]].label]
    if row["method"] == "bijsvd":
        words[0] += f"_{row['left_share']:g}"
    if row["method"] == "nc_ctd":
        words.append(f"own/shared {row['own_per_shared']:g}")
    if row["method"] == "budget":
        words += [f"ranks of {row['rank_multiple']:g}"] if (row.get("rank_multiple") or 1) > 1 else []
        words += ["fewer channels"] if row.get("narrow") is True else []
        words += ["no sharing"] * (not row["share"]) + ["no refit"] * (not row["refit"])
        words += [f"tuned {row['tune']:g} steps"] if (row.get("tune") or 0) > 0 else []
    elif (row.get("calibration_images") or 0) > 0:
        words.append("batch norms measured again")
    if row["hid"] == "dense":
        words.append("HID dense")
    return ", ".join(words)


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
