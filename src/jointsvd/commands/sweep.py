"""Before and after runs: every job of a sweep is checked and its hours estimated first; its table is made last."""

import time
from collections.abc import Iterable
from typing import Any

import hydra
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from torch import nn

from jointsvd.experiment.settings import Settings, read_data
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import processor_name
from jointsvd.results.report import report
from jointsvd.training.classifier import device_of, num_processes, resolve_precision
from jointsvd.training.models import build_model


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
                report(folder, config.logger)
        except ValueError as error:
            raise SystemExit(str(error)) from error


def split_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    params = config.hydra.sweeper.params or {}
    sweep = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(sweep), None)
    return [list(job) for job in jobs]


def check_jobs(config: DictConfig) -> list[Settings]:
    """The settings of all jobs of a sweep. Raises ValueError or FileNotFoundError for the first that cannot work."""
    settings: list[Settings] = []
    for overrides in split_jobs(config):
        cfg = hydra.compose(config.hydra.job.config_name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            settings.append(Settings.from_config(cfg, read_data(cfg)))
        except ValueError as error:
            raise ValueError(f"{' '.join(overrides)}: {error}") from error
    return settings


def announce_hours(jobs: Iterable[Settings]) -> None:
    """Print how long the unfinished jobs will take, if that is over an hour, from a few training steps."""
    todo = {job.run_name: job for job in jobs if not job.row_file.exists()}
    dense = {job.dense_id: job for job in todo.values() if job.trains_dense()}
    phases = [(job, job.finetune, job.plan or Plan()) for job in todo.values()]  # a budget's network: as if dense
    phases += [(job, job.baseline, Plan()) for job in dense.values()]
    seconds = 0.0
    per_step: dict[str, float] = {}
    for job, schedule, plan in phases:
        if schedule.epochs:
            kind = f"{job.architecture} {schedule.batch_size} {bool(plan.groups)}"  # one compressed network for all
            per_step[kind] = per_step.get(kind) or _step_seconds(job, schedule.batch_size, plan)
            full = job.data.image_size
            sizes = (schedule.image_size(epoch) or full for epoch in range(schedule.epochs))
            epochs = sum((size / full) ** 2 for size in sizes)  # time goes with the pixels
            steps = epochs * ((schedule.num_images or job.data.num_train) // schedule.batch_size)
            seconds += steps * per_step[kind] / num_processes(job.cfg.trainer)
    if seconds > 3600:
        device = device_of(next(iter(todo.values())).cfg.trainer)
        print(f"Estimated {seconds / 3600:.1f} hours of training for {len(todo)} runs on {processor_name(device)}")


def _step_seconds(job: Settings, batch_size: int, plan: Plan) -> float:
    """Seconds of one training step, the faster of two after a first one."""
    device = device_of(job.cfg.trainer)
    network = build_structure(build_model(**job.architecture), plan)
    network.to(device).to(memory_format=torch.channels_last).train()
    images = torch.rand(batch_size, *job.data.input_size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    bf16 = resolve_precision(job.cfg.trainer).startswith("bf16")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        loss.item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
