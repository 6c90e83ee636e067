"""Hydra multirun: every job of a sweep is checked before the first starts, and a table is made after the last."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jointsvd.report import report


class SweepCallback(Callback):
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        pass

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        report(Path(config.output_dir) / config.name, config.logger)
