"""Result rows: one JSON file a finished run, one CSV of all of them, and their summary over seeds."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import timm
import torch
import torchvision
from filelock import FileLock

from jointsvd.network.atomic import write_atomic
from jointsvd.network.methods import METHODS
from jointsvd.network.parsing import parse_json
from jointsvd.network.timing import processor_name

ROW_FILE = "row.json"
UNTRAINED = "no training"  # the schedule of a row whose network was compressed and nothing else


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished run. Accuracies in percent on the test set; FLOPs of one image; times in seconds.

    A column with a default came later: rows without it are read too.
    """

    model: str
    data: str
    image_size: int
    num_train: int
    num_test: int
    method: str
    rank_rate: float | None
    left_share: float | None
    own_per_shared: float | None
    hid: str | None
    layers: str | None
    iterations: int | None
    budget_params: float | None = None  # times fewer asked for
    budget_flops: float | None = None
    budget_bytes: float | None = None
    budget_faster: float | None = None
    budget_latency_ms: float | None = None
    rank_multiple: int | None = None
    narrow: bool | None = None  # whether channels between layers might go
    share: bool | None = None  # whether the planner might share factors
    refit: bool | None = None  # whether factors were fitted again behind compressed layers
    tune: int | None = None  # steps of training towards the dense network, without labels
    calibration_images: int | None = (
        None  # drawn by the seed: to plan on, or to measure batch norms of other methods again
    )
    from_scratch: bool  # trained from random weights; no dense network, no raw accuracy
    seed: int
    num_parameters: int
    compression_factor: float  # all parameters
    compression_factor_paper: float  # without batch norm, as the paper counts
    flops: int
    raw_top1: float | None
    raw_top5: float | None
    top1: float  # after the last epoch
    top5: float
    best_top1: float  # after any epoch
    baseline_top1: float | None
    baseline_sha256: str | None  # of the dense network's weights, as its file's header has it (files.read_metadata)
    baseline_schedule: str | None
    baseline_seconds: float | None = None  # of training the dense network, if it was trained here
    schedule: str
    precision: str
    decompose_seconds: float
    train_seconds: float
    config_id: str  # equal for runs that differ in the seed alone
    command: str
    date: str
    versions: str
    processor: str
    raw_correct: str | None  # which test images were right, by answers.pack
    correct: str

    def write(self, folder: Path) -> None:
        write_atomic(folder / ROW_FILE, json.dumps(asdict(self), indent=1) + "\n")


def collect(folder: Path) -> pd.DataFrame:
    """The rows of all finished runs in `folder`, also written to its results.csv, atomically.

    Raises ValueError if there are none, or a row was written by a release with other columns.
    """
    names = [field.name for field in fields(Row)]
    later = {field.name for field in fields(Row) if field.default is not MISSING}
    with FileLock(folder / ".results.lock"):
        rows = []
        for path in sorted(folder.glob(f"*/{ROW_FILE}")):
            row = parse_json(path.read_text(), str(path))
            if not isinstance(row, dict) or not set(names) - later <= set(row) <= set(names):
                raise ValueError(f"{path} has other columns than this release writes; move {path.parent} away")
            rows.append(row)
        if not rows:
            raise ValueError(f"no finished runs in {folder}")
        table = pd.DataFrame(rows, columns=names)
        write_atomic(folder / "results.csv", table.to_csv(index=False))
    return table


def read_rows(folder: Path) -> pd.DataFrame:
    """The rows of an experiment that was collected before."""
    return pd.read_csv(folder / "results.csv", dtype={"config_id": str})


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each setting: n seeds, mean and standard deviation (n - 1) of top1, best of all."""
    lines = []
    for _, group in rows.groupby("config_id", sort=False):
        line = group.iloc[0].to_dict()
        line |= {"n": len(group), "top1_mean": group["top1"].mean(), "top1_std": group["top1"].std()}
        line |= {"best_top1": group["best_top1"].max(), "decompose_seconds": group["decompose_seconds"].mean()}
        line |= {"raw_top1": group["raw_top1"].mean(), "raw_std": group["raw_top1"].std()}  # over calibration images
        lines.append(line)
    table = pd.DataFrame(lines)
    table["order"] = table["method"].map(list(METHODS).index)
    table["trained"] = table["schedule"] != UNTRAINED
    keys = ["model", "data", "trained", "schedule", "rank_rate", "order", "left_share", "own_per_shared", "iterations"]
    means = ("calibration_images", "share", "refit", "tune")
    keys += [key for key in table if key.startswith("budget_") or key in means]
    return table.sort_values(keys, na_position="first", ignore_index=True)


def digest(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Date, versions and processor, for a row."""
    packages = {"torch": torch, "torchvision": torchvision, "lightning": pl, "timm": timm}
    versions = {"jointsvd": version("jointsvd")} | {name: module.__version__ for name, module in packages.items()}
    versions["python"] = platform.python_version()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": " ".join(f"{name}={number}" for name, number in versions.items()),
        "processor": _processors(device),
    }


def heading(command: str, seed: int) -> str:
    """The first lines of a measurement that is kept as text: what was run, and where."""
    facts = {"command": command, "seed": seed, **environment(torch.device("cpu"))}
    return "\n".join(f"# {name}: {value}" for name, value in facts.items())


def _processors(device: torch.device) -> str:
    """The processor; in a DDP run, how many processes use one each."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return f"{processes} x {processor_name(device)}" if processes > 1 else processor_name(device)
