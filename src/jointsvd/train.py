"""python -m jointsvd.train: one configuration in, one result row out.

A run trains (or loads) the dense network that its name shares, decomposes it, measures raw accuracy, fine-tunes, and
writes its row. Everything is in output_dir/name: dense-<id>/ and one folder a run. What is finished is not run again.
"""

import json
import logging
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from jointsvd import Plan, compress_model, compression_factor, num_flops, num_parameters, plan_compression
from jointsvd.data import ImageData
from jointsvd.files import load_compressed, read_metadata, save_compressed
from jointsvd.models import build_model, init_truncated_normal, load_weights
from jointsvd.module import Classifier, Schedule, checkpointing, evaluate, fit, resolve_precision
from jointsvd.report import report
from jointsvd.results import ROW_FILE, Row, collect, digest, environment, file_sha256

CONF = str(Path(__file__).parents[2] / "conf")
NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Settings:
    """What a configuration means: plain values, checked before anything long starts."""

    cfg: DictConfig
    data: ImageData
    architecture: dict[str, Any]
    baseline: Schedule
    finetune: Schedule
    plan: Plan

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Settings":
        """Reads the data and plans the compression. Raises ValueError or FileNotFoundError for what cannot work."""
        data = instantiate(cfg.data)
        data.setup()
        model = cfg.model
        architecture = {
            "name": model.name,
            "num_classes": data.num_classes,
            "in_channels": data.in_channels,
            "stem": model.stem,
            "source": model.source,
        }
        recipe = {phase: Schedule(**_plain(cfg.recipe[phase])) for phase in ("baseline", "finetune")}
        if max(schedule.batch_size for schedule in recipe.values()) > len(data.train_set):
            raise ValueError(f"a batch_size of the recipe is larger than the {len(data.train_set)} training images")
        if model.checkpoint and not Path(model.checkpoint).is_file():
            raise ValueError(f"model.checkpoint: no file at {model.checkpoint}")
        dense = build_model(**architecture)
        try:
            num_flops(dense, data.input_size)
        except RuntimeError as error:
            raise ValueError(
                f"{model.name} cannot take images of {data.input_size}, set data.image_size: {error}"
            ) from error
        plan = Plan()
        if cfg.method.name != "dense":
            options = {key: value for key, value in _plain(cfg.method).items() if key not in ("name", "iterations")}
            plan = plan_compression(dense, cfg.method.name, **options)
        return cls(cfg, data, architecture, recipe["baseline"], recipe["finetune"], plan)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.output_dir) / self.cfg.name

    @property
    def dense_id(self) -> str:
        """Names what the dense network depends on."""
        cfg = self.cfg
        values = {"model": _plain(cfg.model), "data": self._data_key(), "seed": cfg.baseline_seed}
        if cfg.model.checkpoint:
            values["checkpoint"] = file_sha256(cfg.model.checkpoint)
        else:
            values["schedule"] = str(self.baseline)
        return digest(values)

    @property
    def config_id(self) -> str:
        """Names what a row depends on, but for the seed."""
        method = _plain(self.cfg.method) if self.plan.groups else {}
        return digest({"dense": self.dense_id, "method": method, "schedule": str(self.finetune)})

    @property
    def run_name(self) -> str:
        """Every swept key in words, and the config_id for the rest."""
        method = self.cfg.method
        parts = [method.name]
        if self.plan.groups:
            parts += [f"r{method.rank_rate:g}"]
            parts += [f"p{method.left_share:g}"] if "left_share" in method else []
        return "-".join([*parts, f"s{self.cfg.seed}", self.config_id])

    def _data_key(self) -> dict[str, Any]:
        keep = {key: value for key, value in _plain(self.cfg.data).items() if key not in ("root", "num_workers")}
        return keep | {"num_train": len(self.data.train_set), "num_test": len(self.data.test_set)}  # type: ignore


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    _quieten_lightning()
    settings = Settings.from_config(cfg)
    run(settings)
    if HydraConfig.get().mode == RunMode.RUN and _is_main_process():
        report(settings.folder, cfg.logger)


def run(settings: Settings) -> None:
    """Make the row of `settings`, unless it is there already."""
    folder = settings.folder / settings.run_name
    with _locked(folder):
        if (folder / ROW_FILE).exists():
            print(f"{folder} is finished")
            return
        dense, dense_file = dense_network(settings)
        row = compress_and_finetune(settings, dense, dense_file, folder)
        if _is_main_process():
            row.write(folder)
            (folder / "last.ckpt").unlink(missing_ok=True)
            collect(settings.folder)


def dense_network(settings: Settings) -> tuple[nn.Module, Path]:
    """The trained dense network and its file: from an earlier run, a checkpoint, pretrained weights, or trained now."""
    cfg = settings.cfg
    folder = settings.folder / f"dense-{settings.dense_id}"
    file = folder / NETWORK_FILE
    with _locked(folder):
        pl.seed_everything(cfg.baseline_seed, workers=True, verbose=False)
        network = build_model(**settings.architecture, pretrained=cfg.model.pretrained and not file.exists())
        if file.exists():
            return load_compressed(file, network), file
        if cfg.model.checkpoint:
            load_weights(network, cfg.model.checkpoint)
            schedule = f"checkpoint {Path(cfg.model.checkpoint).name}"
        elif cfg.model.pretrained and settings.data.num_classes == 1000:
            schedule = f"pretrained weights of {cfg.model.source}"
        else:
            schedule = str(settings.baseline)
            if settings.baseline.init_std is not None and not cfg.model.pretrained:
                init_truncated_normal(network, settings.baseline.init_std)
            print(f"Training the dense {cfg.model.name}: {schedule}")
            _train(settings, network, settings.baseline, cfg.baseline_seed, folder)
        accuracy = evaluate(_trainer(cfg), network, settings.data)
        if _is_main_process():
            metadata = {"schedule": schedule, "accuracy": json.dumps(accuracy), "command": _command()}
            save_compressed(file, network, Plan(), metadata=metadata | _architecture_metadata(settings))
            (folder / "last.ckpt").unlink(missing_ok=True)
            print(f"Dense {cfg.model.name}: {accuracy['top1']:.2f} % -> {file}")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the other ranks read the file next
    return network, file


def compress_and_finetune(settings: Settings, dense: nn.Module, dense_file: Path, folder: Path) -> Row:
    """Decompose, measure, fine-tune, save the network to folder/network.safetensors; returns the row."""
    cfg, data, plan = settings.cfg, settings.data, settings.plan
    dense_header = read_metadata(dense_file)
    dense_accuracy = json.loads(dense_header["accuracy"])

    start = time.perf_counter()
    network = compress_model(
        dense, plan, **({"iterations": cfg.method.iterations} if "iterations" in cfg.method else {})
    )
    decompose_seconds = time.perf_counter() - start
    cost: dict[str, Any] = {
        "num_parameters": num_parameters(network),
        "compression_factor": compression_factor(dense, network),
        "compression_factor_paper": compression_factor(dense, network, batch_norm=False),
        "flops": num_flops(network, data.input_size),
    }
    raw = evaluate(_trainer(cfg), network, data) if plan.groups else dense_accuracy
    print(f"{settings.run_name}: CF {cost['compression_factor']:.2f}, raw {raw['top1']:.2f} %")

    start = time.perf_counter()
    after, best = raw, raw["top1"]
    if settings.finetune.epochs:
        classifier = _train(settings, network, settings.finetune, cfg.seed, folder)
        after, best = evaluate(_trainer(cfg), network, data), classifier.best_top1
    train_seconds = time.perf_counter() - start
    if _is_main_process():
        save_compressed(folder / NETWORK_FILE, network, plan, metadata=_architecture_metadata(settings))
    print(f"{settings.run_name}: {after['top1']:.2f} % after {settings.finetune}")

    method = cfg.method if plan.groups else {}
    layers = method.get("layers")
    return Row(
        model=cfg.model.name,
        data=HydraConfig.get().runtime.choices["data"],
        image_size=data.image_size,
        num_train=len(data.train_set),  # type: ignore[arg-type]
        num_test=len(data.test_set),  # type: ignore[arg-type]
        method=cfg.method.name,
        rank_rate=method.get("rank_rate"),
        left_share=method.get("left_share"),
        hid=method.get("hid"),
        layers=" ".join(layers) if layers else None,
        iterations=method.get("iterations"),
        seed=cfg.seed,
        **cost,
        raw_top1=raw["top1"],
        raw_top5=raw["top5"],
        top1=after["top1"],
        top5=after["top5"],
        best_top1=best,
        baseline_top1=dense_accuracy["top1"],
        baseline_sha256=file_sha256(dense_file),
        baseline_schedule=dense_header["schedule"],
        schedule=str(settings.finetune),
        precision=resolve_precision(cfg.trainer),
        decompose_seconds=round(decompose_seconds, 2),
        train_seconds=round(train_seconds, 2),
        config_id=settings.config_id,
        command=_command(),
        **environment(next(network.parameters()).device),
    )


def _train(settings: Settings, network: nn.Module, schedule: Schedule, seed: int, folder: Path) -> Classifier:
    data = settings.data
    pl.seed_everything(seed, workers=True, verbose=False)
    data.batch_size, data.seed = schedule.batch_size, seed
    classifier = Classifier(network, data.num_classes, schedule)
    trainer = _trainer(settings.cfg, schedule, folder)
    fit(trainer, classifier, data, folder)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return classifier


def _trainer(cfg: DictConfig, schedule: Schedule | None = None, folder: Path | None = None) -> pl.Trainer:
    """A Trainer for `schedule` that keeps its checkpoint in `folder`; without them, one that evaluates."""
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if schedule is not None and folder is not None:
        logger = instantiate(cfg.logger, name=folder.name, save_dir=folder) if "_target_" in cfg.logger else False
        options = {"logger": logger, "callbacks": [checkpointing(folder)], "max_epochs": schedule.epochs}
    return cast(
        pl.Trainer,
        instantiate(
            cfg.trainer,
            precision=resolve_precision(cfg.trainer),
            use_distributed_sampler=False,  # the data module has its own
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        ),
    )


def _quieten_lightning() -> None:
    """Sweeps make a Trainer a hundred times; what each says about itself would bury the results."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*Checkpoint directory.*", ".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)


def _is_main_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _locked(folder: Path) -> Any:
    """One process at a time in `folder`; the ranks of one DDP run count as one."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock") if _is_main_process() else nullcontext()


def _architecture_metadata(settings: Settings) -> dict[str, str]:
    return {"architecture": json.dumps(settings.architecture)}


def _command() -> str:
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    return " ".join(["python -m jointsvd.train", *overrides])


def _plain(cfg: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


if __name__ == "__main__":
    main()
