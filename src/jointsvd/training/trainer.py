"""Lightning's Trainer as every run here uses it."""

import logging
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from jointsvd.network.atomic import write_atomic
from jointsvd.training.devices import device_of, resolve_precision
from jointsvd.training.schedule import Schedule


def training_trainer(
    options: Mapping[str, Any], schedule: Schedule, folder: Path, logger: Logger | None = None
) -> pl.Trainer:
    """A Trainer for `schedule` that keeps its checkpoint in `folder`. options: of pl.Trainer, precision "auto" too."""
    callbacks: list[pl.Callback] = [checkpointing(folder)]
    if schedule.ema:
        callbacks.append(EMAWeightAveraging(device_of(options), decay=schedule.ema))
    return _trainer(
        options,
        logger=logger or False,
        callbacks=callbacks,
        max_epochs=schedule.epochs,
        check_val_every_n_epoch=schedule.test_every,
    )


def evaluation_trainer(options: Mapping[str, Any]) -> pl.Trainer:
    """A Trainer that evaluates and writes nothing."""
    return _trainer(options, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def check_trainer(options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that pl.Trainer refuses on this machine."""
    try:
        evaluation_trainer(options)
    except Exception as error:  # it has a class for each kind
        raise ValueError(f"trainer: {error}") from error


def checkpointing(folder: Path) -> ModelCheckpoint:
    """Keep one checkpoint, of the last epoch."""
    return ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own goes through the temporary folder, and copies where that is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content = BytesIO()
        torch.save(checkpoint, content)
        write_atomic(path, content.getvalue())


def quieten_lightning() -> None:
    """Sweeps make a Trainer a hundred times; what each says about itself would bury the results."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*Checkpoint directory.*", ".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)


def _trainer(options: Mapping[str, Any], **more: Any) -> pl.Trainer:
    return pl.Trainer(
        **{**options, "precision": resolve_precision(options)},
        use_distributed_sampler=False,  # the data module has its own
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        **more,
    )
