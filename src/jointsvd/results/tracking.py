"""Weights & Biases: where runs go, and the one run that owns the table of a sweep.

`options` are those of pytorch_lightning.loggers.WandbLogger as plain values: project, group, entity, tags, ...
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from pytorch_lightning.loggers import WandbLogger

from jointsvd.network.checked import check_fields
from jointsvd.results.rows import digest

_OF_ALL_RUNS = ("project", "entity", "group", "tags", "notes")


@dataclass(frozen=True)
class Where:
    """Where runs go, and in which words."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] | None = None
    notes: str | None = None


def check_logger(options: Mapping[str, Any]) -> None:
    """Raises ValueError for options of wrong types."""
    check_fields(Where(**{key: options[key] for key in _OF_ALL_RUNS if key in options}), "logger.")
    if options and os.environ.get("WANDB_MODE") == "disabled":
        raise ValueError("WANDB_MODE=disabled: leave the logger out (logger=none), or unset it")


def is_offline() -> bool:
    """No API key, or WANDB_MODE says so: runs are written to disk alone."""
    # WandbLogger(offline=True) sets WANDB_MODE to "dryrun" for the rest of the process
    if os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun"):
        return True
    try:
        return not wandb.login(prompt=False)
    except wandb.errors.UsageError:  # no key
        return True


def make_logger(options: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> WandbLogger:
    """A logger for the run of `folder` that holds `values`, the run's configuration."""
    offline = is_offline()
    mode = "offline" if offline else None  # W&B has read its environment already, which is all that `offline` sets
    logger = WandbLogger(**options, name=folder.name, save_dir=folder, offline=offline, mode=mode)
    logger.log_hyperparams(dict(values))
    return logger


def log_run(options: Mapping[str, Any], values: Mapping[str, Any], folder: Path, row: Mapping[str, Any]) -> None:
    """Put `row` into the summary of the W&B run of `folder`, and end it; a run without training begins here."""
    run = wandb.run or make_logger(options, values, folder).experiment
    run.summary.update(dict(row))
    run.finish()


def log_summary(options: Mapping[str, Any], folder: Path, table: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Log the table, the rows it is made from and the picture to the run "summary" of the sweep's group."""
    offline = is_offline()
    if wandb.run is not None:
        wandb.finish()  # of a run that failed
    with wandb.init(
        **{"group": folder.name} | {key: options[key] for key in _OF_ALL_RUNS if key in options},
        name="summary",
        job_type="summary",
        id=f"summary-{digest({'folder': str(folder)})}",
        resume=None if offline else "allow",
        dir=folder,
        mode="offline" if offline else None,
    ) as run:
        run.log(
            {
                "accuracy_vs_compression": wandb.Table(dataframe=table),
                "rows": wandb.Table(dataframe=rows),
                "accuracy": wandb.Image(str(folder / "accuracy.png")),
            }
        )
    if offline:
        places = [folder, folder / "*", folder.parent / "dense" / "*"]  # the summary, the runs, their dense networks
        patterns = " ".join(f"{place}/wandb/offline-run-*" for place in places)
        reason = "no API key, or WANDB_MODE=offline"
        print(f"W&B: {reason}, so runs were written offline; upload them by: wandb sync {patterns}")
