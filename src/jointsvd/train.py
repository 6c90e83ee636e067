"""python -m jointsvd.train: one configuration in, one result row out.

A run trains (or loads) the dense network that its name shares, decomposes it, measures raw accuracy, fine-tunes, and
writes its row. Everything is in output_dir/name: dense-<id>/ and one folder a run. What is finished is not run again.
"""

import json
import logging
import os
import shlex
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import hydra
import pytorch_lightning as pl
import torch
import wandb
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from jointsvd.checkpoints import check_finite, load_weights
from jointsvd.cost import compression_factor, num_flops, num_parameters
from jointsvd.files import load_compressed, read_metadata, save_compressed
from jointsvd.models import build_model, init_truncated_normal
from jointsvd.module import (
    AtomicCheckpointIO,
    Classifier,
    Schedule,
    checkpointing,
    device_of,
    evaluate,
    fit,
    resolve_precision,
)
from jointsvd.plan import Plan
from jointsvd.report import report
from jointsvd.results import ROW_FILE, Row, collect, environment, file_sha256
from jointsvd.settings import CONF, NETWORK_FILE, Settings, read_data
from jointsvd.surgery import compress_model
from jointsvd.sweep import announce_hours
from jointsvd.tracking import log_run, make_logger


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    quieten_lightning()
    alone = HydraConfig.get().mode == RunMode.RUN and _is_main_process()
    try:
        settings = Settings.from_config(cfg, read_data(cfg))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"nothing was run: {error}") from error
    if alone:
        announce_hours([settings])
    run(settings)
    if alone:
        report(settings.folder, cfg.logger)


def run(settings: Settings) -> None:
    """Make the row of `settings`, unless it is there already."""
    folder = settings.folder / settings.run_name
    with _locked(folder):
        if (folder / ROW_FILE).exists():
            print(f"{folder} is finished")
            return
        try:
            row = compress_and_finetune(settings, dense_network(settings), folder)
            if _is_main_process():
                row.write(folder)
                (folder / "last.ckpt").unlink(missing_ok=True)
                collect(settings.folder)
                if "_target_" in settings.cfg.logger:
                    log_run(settings.cfg, folder, asdict(row))
        finally:
            wandb.finish()  # else the next run of a sweep would log into one that failed


def dense_network(settings: Settings) -> nn.Module:
    """The trained dense network: from settings.dense_file, or else a checkpoint, pretrained weights, or trained now."""
    cfg, file = settings.cfg, settings.dense_file
    with _locked(file.parent):
        pl.seed_everything(cfg.baseline_seed, workers=True, verbose=False)
        if file.exists():
            return load_compressed(file, build_model(**settings.architecture))
        network = build_model(**settings.architecture, pretrained=cfg.model.pretrained and not cfg.model.checkpoint)
        if cfg.model.checkpoint:
            load_weights(network, cfg.model.checkpoint)
            schedule = f"checkpoint {Path(cfg.model.checkpoint).name}"
        elif settings.trains_dense():
            schedule = str(settings.baseline)
            if settings.baseline.init_std is not None and not cfg.model.pretrained:
                init_truncated_normal(network, settings.baseline.init_std)
            print(f"Training the dense {cfg.model.name}: {schedule}")
            if settings.baseline.epochs:
                _train(settings, network, Plan(), settings.baseline, cfg.baseline_seed, file.parent)
                wandb.finish()
        else:
            schedule = f"pretrained weights of {cfg.model.source}"
        check_finite(network, f"the dense network ({schedule})")
        accuracy = evaluate(make_trainer(cfg), network, settings.data)
        if _is_main_process():
            metadata = {"schedule": schedule, "accuracy": json.dumps(accuracy), "command": _command()}
            save_compressed(file, network, Plan(), metadata=metadata | _header(settings, Plan()))
            (file.parent / "last.ckpt").unlink(missing_ok=True)
            print(f"Dense {cfg.model.name}: {accuracy['top1']:.2f} % -> {file}")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the other ranks read the file next
    return network


def compress_and_finetune(settings: Settings, dense: nn.Module, folder: Path) -> Row:
    """Decompose, measure, fine-tune, save the network to folder/network.safetensors; returns the row."""
    cfg, data, plan = settings.cfg, settings.data, settings.plan
    dense_header = read_metadata(settings.dense_file)
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
    raw = evaluate(make_trainer(cfg), network, data) if plan.groups else dense_accuracy
    print(f"{settings.run_name}: CF {cost['compression_factor']:.2f}, raw {raw['top1']:.2f} %")

    start = time.perf_counter()
    after, best = raw, raw["top1"]
    if settings.finetune.epochs:
        classifier = _train(settings, network, plan, settings.finetune, cfg.seed, folder)
        after, best = evaluate(make_trainer(cfg), network, data), classifier.best_top1
    train_seconds = time.perf_counter() - start
    if _is_main_process():
        save_compressed(folder / NETWORK_FILE, network, plan, metadata=_header(settings, plan))
    print(f"{settings.run_name}: {after['top1']:.2f} % after {settings.finetune}")

    method = cfg.method if plan.groups else {}
    layers = method.get("layers")
    return Row(
        model=cfg.model.name,
        data=HydraConfig.get().runtime.choices["data"],
        image_size=data.image_size,
        num_train=data.num_train,
        num_test=data.num_test,
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
        baseline_sha256=file_sha256(settings.dense_file),
        baseline_schedule=dense_header["schedule"],
        schedule=str(settings.finetune),
        precision=resolve_precision(cfg.trainer),
        decompose_seconds=round(decompose_seconds, 2),
        train_seconds=round(train_seconds, 2),
        config_id=settings.config_id,
        command=_command(),
        **environment(device_of(cfg.trainer)),
    )


def _train(
    settings: Settings, network: nn.Module, plan: Plan, schedule: Schedule, seed: int, folder: Path
) -> Classifier:
    data = settings.data
    pl.seed_everything(seed, workers=True, verbose=False)
    data.batch_size, data.seed = schedule.batch_size, seed
    classifier = Classifier(network, data.num_classes, schedule, _header(settings, plan))
    trainer = make_trainer(settings.cfg, schedule, folder)
    fit(trainer, classifier, data, folder)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return classifier


def make_trainer(cfg: DictConfig, schedule: Schedule | None = None, folder: Path | None = None) -> pl.Trainer:
    """A Trainer for `schedule` that keeps its checkpoint in `folder`; without them, one that evaluates."""
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if schedule is not None and folder is not None:
        logger = make_logger(cfg, folder) if "_target_" in cfg.logger else False
        options = {"logger": logger, "callbacks": [checkpointing(folder)], "max_epochs": schedule.epochs}
    return cast(
        pl.Trainer,
        instantiate(
            cfg.trainer,
            precision=resolve_precision(cfg.trainer),
            use_distributed_sampler=False,  # the data module has its own
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[AtomicCheckpointIO()],
            **options,
        ),
    )


def quieten_lightning() -> None:
    """Sweeps make a Trainer a hundred times; what each says about itself would bury the results."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*Checkpoint directory.*", ".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)


def _is_main_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _locked(folder: Path) -> Any:
    """One process at a time in `folder`; the ranks of one DDP run count as one."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock") if _is_main_process() else nullcontext()


def _header(settings: Settings, plan: Plan) -> dict[str, str]:
    """What a file of weights says about the network they are of."""
    return {"architecture": json.dumps(settings.architecture), "plan": plan.to_json()}


def _command() -> str:
    return f"python -m jointsvd.train {shlex.join(HydraConfig.get().overrides.task)}"


if __name__ == "__main__":
    main()
