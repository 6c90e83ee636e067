"""What a configuration means: plain values, checked before anything long starts."""

import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from jointsvd.compression.allocation import check_budget
from jointsvd.compression.compressed import params_for_bytes
from jointsvd.network.cost import num_flops
from jointsvd.network.plan import Plan
from jointsvd.network.rules import plan_compression
from jointsvd.results.rows import ROW_FILE, digest, file_sha256
from jointsvd.training.checkpoints import check_finite, load_weights
from jointsvd.training.classifier import num_processes, resolve_precision
from jointsvd.training.data import ImageData
from jointsvd.training.models import build_model, check_architecture
from jointsvd.training.schedule import Schedule

CONF = str(Path(__file__).parents[3] / "conf")
NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Settings:
    """One run: its data, the architecture of its dense network, its two schedules and its plan (empty: dense; None: for
    a budget, made with the decomposed network)."""

    cfg: DictConfig
    data: ImageData
    architecture: dict[str, Any]
    baseline: Schedule
    finetune: Schedule
    plan: Plan | None

    @classmethod
    def from_config(cls, cfg: DictConfig, data: ImageData) -> "Settings":
        """Raises ValueError for a configuration that cannot work, saying what to change."""
        baseline, finetune = (Schedule(**plain(cfg.recipe[phase])) for phase in ("baseline", "finetune"))
        processes = num_processes(cfg.trainer)
        trained = [finetune] * bool(finetune.epochs) + [baseline] * (not cfg.from_scratch and not cfg.model.checkpoint)
        for schedule in trained:
            if schedule.batch_size > data.num_train or schedule.batch_size % processes:
                raise ValueError(
                    f"recipe: batch_size {schedule.batch_size} must be a multiple of the {processes} processes and at "
                    f"most the {data.num_train} training images"
                )
            if (schedule.num_images or 0) > data.num_train:
                raise ValueError(f"recipe: num_images {schedule.num_images} of only {data.num_train} training images")
        arguments = architecture(cfg.model, data)
        if cfg.model.pretrained not in (True, False, "auto"):
            raise ValueError(f"model.pretrained is true, false or auto, got {cfg.model.pretrained!r}")
        check_architecture(**arguments, pretrained=_pretrained(cfg, data))
        dense = _dense_without_weights(data.input_size, **arguments)
        if cfg.model.checkpoint:
            _check_checkpoint(cfg.model.checkpoint, **arguments)
        if baseline.distillation or (cfg.from_scratch and finetune.distillation):
            raise ValueError("distillation needs a trained dense network: only recipe.finetune can have it")
        if cfg.from_scratch and not finetune.epochs:
            raise ValueError("from_scratch=true trains by recipe.finetune; give it epochs")
        if "_target_" in cfg.logger and os.environ.get("WANDB_MODE") == "disabled":
            raise ValueError("WANDB_MODE=disabled: leave the logger out (logger=none), or unset it")
        if cfg.method.get("iterations", 1) < 1:
            raise ValueError(f"method.iterations must be 1 or more, got {cfg.method.iterations}")
        if not 0 <= cfg.calibration_images <= data.num_train:
            raise ValueError(f"calibration_images={cfg.calibration_images} of {data.num_train} training images")
        if cfg.from_scratch and cfg.calibration_images and cfg.method.name != "budget":
            raise ValueError("from_scratch=true decomposes nothing: leave calibration_images at 0")
        plan: Plan | None = Plan()
        if cfg.method.name == "budget":
            _check_budget(cfg, dense, data.input_size)
            plan = None
        elif cfg.method.name != "dense":
            options = {key: value for key, value in plain(cfg.method).items() if key not in ("name", "iterations")}
            plan = plan_compression(dense, cfg.method.name, **options)
        return cls(cfg, data, arguments, baseline, finetune, plan)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.output_dir) / self.cfg.name

    @property
    def compresses(self) -> bool:
        """Whether this run is of anything but the dense network."""
        return self.plan is None or bool(self.plan.groups)

    @property
    def method(self) -> dict[str, Any]:
        """What the decomposition depends on; {} for the dense network."""
        budget = plain(self.cfg.budget) if self.plan is None else {}
        return plain(self.cfg.method) | budget if self.compresses else {}

    @property
    def calibration(self) -> dict[str, int]:
        """Number of calibration images and the seed that draws them; empty for a run without."""
        if not self.compresses or not self.cfg.calibration_images:
            return {}
        return {"calibration_images": self.cfg.calibration_images, "calibration_seed": self.cfg.seed}

    @property
    def pretrained(self) -> bool:
        """Whether the dense network starts from its source's ImageNet weights."""
        return _pretrained(self.cfg, self.data)

    @property
    def dense_id(self) -> str:
        """Names what the dense network depends on."""
        values = self._common | {"seed": self.cfg.baseline_seed}
        if self.cfg.model.checkpoint:
            values["checkpoint"] = file_sha256(self.cfg.model.checkpoint)
        else:
            values["schedule"] = _values(self.baseline)
        return digest(values)

    @property
    def _common(self) -> dict[str, Any]:
        """What every network here depends on."""
        where = ("accelerator", "devices", "strategy", "num_nodes", "_target_")
        trainer = {key: value for key, value in plain(self.cfg.trainer).items() if key not in where}
        return {
            "model": plain(self.cfg.model),
            "data": self.data.fingerprint,
            "trainer": trainer | {"precision": resolve_precision(self.cfg.trainer)},
        }

    @property
    def dense_file(self) -> Path:
        """Apart from the runs: all recipes that start from the same dense network share it."""
        return Path(self.cfg.output_dir) / "dense" / f"{self.cfg.dense_name}-{self.dense_id}" / NETWORK_FILE

    def trains_dense(self) -> bool:
        """Whether this run would have to train the dense network first."""
        ready = (
            self.cfg.from_scratch or self.cfg.model.checkpoint or (self.pretrained and self.data.num_classes == 1000)
        )
        return not ready and not self.dense_file.exists()

    @property
    def decomposed_file(self) -> Path:
        calibrated = digest({"decomposed": self._decomposed_id, **self.calibration})
        name = calibrated if self.calibration else self._decomposed_id
        return self.folder / "-".join([*self._method_words(), "raw", name]) / NETWORK_FILE

    @property
    def config_id(self) -> str:
        """Names what a row depends on, but for the seed."""
        return digest({"decomposed": self._decomposed_id, "schedule": _values(self.finetune)})

    @property
    def run_name(self) -> str:
        """The usual swept keys in words, and the config_id for the rest."""
        return "-".join([*self._method_words(), f"s{self.cfg.seed}", self.config_id])

    @property
    def row_file(self) -> Path:
        """There once the run is finished."""
        return self.folder / self.run_name / ROW_FILE

    @property
    def _decomposed_id(self) -> str:
        start = self._common if self.cfg.from_scratch else {"dense": self.dense_id}
        method = {key: value for key, value in self.method.items() if value is not None}
        calibration = {"calibration_images": self.cfg.calibration_images} if self.calibration else {}
        return digest({**start, "method": method, **calibration})

    def _method_words(self) -> list[str]:
        method = self.cfg.method
        model = [] if self.cfg.model.name in self.cfg.name else [self.cfg.model.name]
        if not self.compresses:
            return [*model, method.name]
        if self.plan is None:
            budgets = {key: self.method[key] for key in ("params", "flops", "bytes", "faster", "latency_ms")}
            return [*model, method.name, *(f"{key}{factor:g}" for key, factor in budgets.items() if factor)]
        share = [f"p{method.left_share:g}"] if "left_share" in method else []
        return [*model, method.name, f"r{method.rank_rate:g}", *share]


def _check_budget(cfg: DictConfig, dense: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raises ValueError for a budget that says nothing or that no plan of `dense` (on the meta device) reaches."""
    budget = cfg.budget
    budgets = [budget[key] for key in ("params", "flops", "bytes", "faster")]
    too_small = any(budget is not None and budget < 1 for budget in budgets)
    if not any([*budgets, budget.latency_ms]) or too_small or (budget.latency_ms or 1) <= 0:
        given = f"got {budgets} and latency_ms {budget.latency_ms}"
        raise ValueError(
            f"give budget.params, .flops, .bytes or .faster as factors of 1 or more, or latency_ms; {given}"
        )
    if cfg.from_scratch or not cfg.calibration_images:
        raise ValueError("a budget is planned on a trained network and calibration_images (512, say)")
    params = params_for_bytes(dense, budget.params, budget.bytes)
    image = torch.empty(1, *input_size, device="meta")
    if budget.flops and (budget.faster or budget.latency_ms):
        raise ValueError("give budget.flops or a budget of time, not both")
    if params or budget.flops:  # times are measured on the trained network
        check_budget(dense, image, params=params, flops=budget.flops, rank_multiple=budget.rank_multiple)


def _values(schedule: Schedule) -> dict[str, Any]:
    """What training depends on, without what is off: an option that is added later keeps old names."""
    return {key: value for key, value in asdict(schedule).items() if value and key != "test_every"}


def _pretrained(cfg: DictConfig, data: ImageData) -> bool:
    return data.num_classes == 1000 if cfg.model.pretrained == "auto" else bool(cfg.model.pretrained)


def architecture(model: DictConfig, data: ImageData) -> dict[str, Any]:
    """Arguments of `build_model` for the dense network of a configuration."""
    small = data.image_size <= 64
    return {
        "name": model.name,
        "num_classes": data.num_classes,
        "in_channels": data.in_channels,
        "stem": ("cifar" if small else "imagenet") if model.stem == "auto" else model.stem,
        "source": model.source,
    }


@cache
def _dense_without_weights(input_size: tuple[int, int, int], **architecture: Any) -> nn.Module:
    """The dense network on the meta device, once for all jobs of a sweep; ValueError if it cannot take the images."""
    with torch.device("meta"):
        network = build_model(**architecture)
    try:
        num_flops(network, input_size)
    except RuntimeError as error:
        size = "x".join(map(str, input_size))
        raise ValueError(
            f"{architecture['name']} cannot take images of {size}; set data.image_size ({error})"
        ) from error
    return network


@cache
def _check_checkpoint(path: str, **architecture: Any) -> None:
    """Raises ValueError for a file that is not the finite weights of this network."""
    network = build_model(**architecture)
    load_weights(network, path)
    check_finite(network, f"model.checkpoint {path}")


def read_data(cfg: DictConfig) -> ImageData:
    """The data of a configuration, read once for all jobs of a sweep.

    Raises FileNotFoundError, saying how to get it, if it is not there.
    """
    return _read_data(OmegaConf.to_yaml(cfg.data, resolve=True))


@cache
def _read_data(text: str) -> ImageData:
    data = cast(ImageData, instantiate(OmegaConf.create(text)))
    data.setup("fit")
    return data


def plain(cfg: Any) -> dict[str, Any]:
    """A configuration node as a dict of plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
