"""Before and after runs: every job of a sweep is checked and its hours estimated first; its table is made last."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from jointsvd.data import ImageData
from jointsvd.models import build_model
from jointsvd.module import resolve_precision
from jointsvd.report import report
from jointsvd.results import ROW_FILE, processor_name
from jointsvd.settings import Settings, read_data
from jointsvd.surgery import build_structure


class SweepCallback(Callback):
    """Hydra turns exceptions of callbacks into warnings, hence SystemExit."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.trainer.devices != 1 or config.trainer.get("num_nodes", 1) != 1:
            raise SystemExit("a sweep runs its jobs on one device each: leave trainer.devices at 1, or run one job")
        try:
            announce_hours(check_jobs(config))
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"nothing was run: {error}") from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)
        try:
            report(Path(config.output_dir) / config.name, config.logger)
        except ValueError as error:
            raise SystemExit(str(error)) from error


def check_jobs(config: DictConfig) -> list[Settings]:
    """The settings of all jobs of a sweep. Raises ValueError or FileNotFoundError for the first that cannot work."""
    params = config.hydra.sweeper.params or {}
    sweep = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(sweep), None)
    settings: list[Settings] = []
    data: dict[str, ImageData] = {}
    for overrides in jobs:
        cfg = hydra.compose("train", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        key = OmegaConf.to_yaml(cfg.data)
        data[key] = data.get(key) or read_data(cfg)
        try:
            settings.append(Settings.from_config(cfg, data[key]))
        except ValueError as error:
            raise ValueError(f"{' '.join(overrides)}: {error}") from error
    return settings


def announce_hours(jobs: Iterable[Settings]) -> None:
    """Print how long the unfinished jobs will take, if that is over an hour; from a few training steps of each kind."""
    todo = {job.run_name: job for job in jobs if not (job.folder / job.run_name / ROW_FILE).exists()}
    dense = {job.dense_id: job for job in todo.values() if job.trains_dense()}
    steps = sum(job.finetune.epochs for job in todo.values()) + sum(job.baseline.epochs for job in dense.values())
    if not steps:
        return
    seconds = 0.0
    per_step: dict[str, float] = {}
    for job in todo.values():
        kind = f"{job.architecture} {job.plan.settings.get('method')} {job.finetune.batch_size}"
        if kind not in per_step and job.finetune.epochs:
            per_step[kind] = _step_seconds(job, job.finetune.batch_size, compressed=True)
        seconds += job.finetune.epochs * job.num_batches(job.finetune) * per_step.get(kind, 0.0)
    for job in dense.values():
        step = _step_seconds(job, job.baseline.batch_size, compressed=False)
        seconds += job.baseline.epochs * job.num_batches(job.baseline) * step
    if seconds > 3600:
        device = _device(next(iter(todo.values())).cfg)
        print(f"Estimated {seconds / 3600:.1f} hours of training for {len(todo)} runs on {processor_name(device)}")


def _step_seconds(job: Settings, batch_size: int, *, compressed: bool) -> float:
    """Seconds of one training step, the faster of two after a first one."""
    device = _device(job.cfg)
    network = build_model(**job.architecture)
    network = build_structure(network, job.plan) if compressed else network
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


def _device(cfg: DictConfig) -> torch.device:
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if on_gpu else "cpu")
