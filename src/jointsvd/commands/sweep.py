"""Before and after a sweep: every job is checked and its hours estimated first; the table is made last."""

from itertools import product
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jointsvd.commands.config import plain, read_settings
from jointsvd.experiment.hours import announce_hours
from jointsvd.experiment.settings import Settings
from jointsvd.results.report import report


class SweepCallback(Callback):
    """Hydra turns exceptions of callbacks into warnings, hence SystemExit."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.trainer.devices != 1 or config.trainer.get("num_nodes", 1) != 1:
            raise SystemExit("a sweep runs its jobs on one device each: leave trainer.devices at 1, or run one job")
        remote = config.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"
        if remote and config.trainer.precision == "auto":
            raise SystemExit(
                "the machine that trains is not this one: set trainer.precision to bf16-mixed or 32-true, not auto"
            )
        try:
            jobs = check_jobs(config)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"nothing was run: {error}") from error
        self.folders = list(dict.fromkeys(job.folder for job in jobs))
        if all(job.row_file.exists() for job in jobs):
            self.on_multirun_end(config)
            raise SystemExit(0)  # Hydra would start every job to find it finished
        if not remote:  # else it would be another machine's hours
            announce_hours(jobs)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            for folder in self.folders:
                report(folder, plain(config.logger))
        except ValueError as error:
            raise SystemExit(str(error)) from error


def split_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep, in the order in which Hydra's sweeper runs them."""
    params = config.hydra.sweeper.params or {}
    sweep = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    values: dict[str, list[str]] = {}  # the last override of a key counts
    for override in OverridesParser.create().parse_overrides(sweep):
        key = override.get_key_element()
        if override.is_sweep_override():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
    return [list(job) for job in product(*values.values())]


def check_jobs(config: DictConfig) -> list[Settings]:
    """The settings of all jobs of a sweep. Raises ValueError or FileNotFoundError for the first that cannot work."""
    settings: list[Settings] = []
    for overrides in split_jobs(config):
        cfg = hydra.compose(config.hydra.job.config_name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            settings.append(read_settings(cfg))
        except ValueError as error:
            raise ValueError(f"{' '.join(overrides)}: {error}") from error
    return settings
