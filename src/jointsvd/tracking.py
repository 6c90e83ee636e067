"""Weights & Biases: where runs go, and the one run that owns the table of a sweep."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger

from jointsvd.results import digest


def is_offline() -> bool:
    """No API key, or WANDB_MODE says so: runs are written to disk alone."""
    return os.environ.get("WANDB_MODE") == "offline" or not wandb.api.api_key


def make_logger(cfg: DictConfig, folder: Path) -> WandbLogger:
    """A logger for the run of `folder`, in the sweep's group, that holds the run's configuration."""
    logger = instantiate(cfg.logger, name=folder.name, save_dir=folder, offline=is_offline())
    logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return logger


def finish_run(values: Mapping[str, Any]) -> None:
    """Put the final `values` into the summary of the run being logged, if one is, and end it."""
    if wandb.run is not None:
        wandb.run.summary.update(dict(values))
        wandb.finish()


def log_summary(folder: Path, table: pd.DataFrame, rows: pd.DataFrame, logger: Mapping[str, Any]) -> None:
    """Log the table, the rows it is made from and the picture to the run "summary" of the sweep's group."""
    offline = is_offline()
    with wandb.init(
        project=logger["project"],
        group=logger["group"],
        name="summary",
        job_type="summary",
        id=f"summary-{digest({'folder': str(folder)})}",
        resume=None if offline else "allow",
        dir=folder,
        mode="offline" if offline else "online",
    ) as run:
        run.log(
            {
                "accuracy_vs_compression": wandb.Table(dataframe=table),
                "rows": wandb.Table(dataframe=rows),
                "accuracy": wandb.Image(str(folder / "accuracy.png")),
            }
        )
    if offline:
        print(f"W&B: no API key, runs were written offline; `wandb sync {folder}/**/offline-run-*` uploads them")
