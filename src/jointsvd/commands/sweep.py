"""Before and after a sweep: every job is checked and its hours estimated first; the table is made last."""

import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from jointsvd.commands.config import plain, read_settings
from jointsvd.commands.sentence import MISTAKES, in_one_sentence, sentence
from jointsvd.experiment.hours import announce_hours
from jointsvd.experiment.settings import Settings
from jointsvd.network.atomic import check_writable
from jointsvd.results.report import report
from jointsvd.training.trainer import check_trainer


class SweepCallback(Callback):
    """Hydra turns exceptions of callbacks into warnings, hence SystemExit."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        remote = launcher == "submitit_slurm"
        if remote and config.trainer.precision == "auto":
            raise SystemExit(
                "the machine that trains is not this one: set trainer.precision to bf16-mixed or 32-true, not auto"
            )
        try:
            jobs = check_jobs(config)
            several = _take_several(jobs, launcher)
            for trainer in [] if remote else {repr(job.trainer): job.trainer for job in jobs}.values():
                check_trainer(trainer)
            for folder, job in {job.folder: job for job in jobs}.items():
                check_writable(folder / job.row_file.name)
        except MISTAKES as error:
            raise SystemExit(f"nothing was run: {sentence(error)}") from error
        self.row_files = [job.row_file for job in jobs]
        if all(file.exists() for file in self.row_files):
            self.on_multirun_end(config)
            raise SystemExit(0)  # Hydra would start every job to find it finished
        if not remote:  # else it would be another machine's hours
            announce_hours(jobs)
        if several:
            run_each(config)
            self.on_multirun_end(config)
            raise SystemExit(0)  # Hydra would start every job again in each of its processes

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        missing = [file.parent for file in self.row_files if not file.exists()]
        with in_one_sentence():
            for folder in dict.fromkeys(file.parents[1] for file in self.row_files if file.exists()):
                report(folder, plain(config.logger))
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SystemExit(f"no row of {missing[0]}{others}: why is said above; the same command runs them again")


def _take_several(jobs: Iterable[Settings], launcher: str) -> bool:
    """Whether jobs take more than one device each. Raises ValueError for a launcher that does not know of it."""
    several = {(job.trainer["devices"] != 1, job.trainer.get("num_nodes", 1) != 1) for job in jobs}
    if any(nodes or (devices and launcher != "basic") for devices, nodes in several):
        raise ValueError(
            "a sweep runs its jobs on one device each, or with launcher=here one after the other on several of one "
            "node: set launcher=here and trainer.num_nodes=1, or trainer.devices=1"
        )
    return any(devices for devices, _ in several)


def run_each(config: DictConfig) -> None:
    """The jobs of a sweep one after the other, each a command of its own that starts the processes it needs."""
    for overrides in split_jobs(config):
        command = [sys.executable, "-m", "jointsvd", config.hydra.job.config_name, *overrides, "hydra.mode=RUN"]
        subprocess.run(command, check=False)  # what fails has said why; its row will be missed


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
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"{' '.join(overrides)}: {sentence(error)}") from error
    return settings
