"""The stages of a run, each a file made once: the dense network, the decomposed network, the fine-tuned network."""

import json
import logging
import os
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import wandb
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from jointsvd.compression.calibration import recalibrate_batchnorm
from jointsvd.compression.compressed import compress
from jointsvd.experiment.settings import NETWORK_FILE, Settings, plain
from jointsvd.network.files import load_compressed, read_metadata, save_compressed
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import build_structure, compress_model
from jointsvd.results.tracking import make_logger
from jointsvd.training.checkpoints import check_finite, load_weights
from jointsvd.training.classifier import (
    AtomicCheckpointIO,
    Classifier,
    checkpointing,
    device_of,
    evaluate,
    fit,
    resolve_precision,
)
from jointsvd.training.models import build_model, init_truncated_normal
from jointsvd.training.schedule import Schedule

Stage = tuple[nn.Module, dict[str, Any]]  # a network, and facts about how it came about
Made = tuple[nn.Module, Plan, dict[str, Any]]


def dense_network(settings: Settings) -> Stage:
    """The trained dense network, from a checkpoint, pretrained weights, or trained here; facts: accuracy, schedule,
    seconds of training if it was trained here."""
    cfg = settings.cfg

    def make() -> Made:
        pl.seed_everything(cfg.baseline_seed, workers=True, verbose=False)
        network = build_model(**settings.architecture, pretrained=settings.pretrained and not cfg.model.checkpoint)
        facts: dict[str, Any] = {}
        if cfg.model.checkpoint:
            load_weights(network, cfg.model.checkpoint)
            schedule = f"checkpoint {Path(cfg.model.checkpoint).name}"
        elif settings.trains_dense():
            schedule = str(settings.baseline)
            if settings.baseline.init_std is not None and not settings.pretrained:
                init_truncated_normal(network, settings.baseline.init_std)
            print(f"Training the dense {cfg.model.name}: {schedule}")
            folder = settings.dense_file.parent
            facts["seconds"] = train(settings, network, Plan(), settings.baseline, cfg.baseline_seed, folder).seconds
            wandb.finish()
        else:
            schedule = f"pretrained weights of {cfg.model.source}"
        check_finite(network, f"the dense network ({schedule})")
        accuracy = evaluate(make_trainer(cfg), network, settings.data)
        print(f"Dense {cfg.model.name}: {accuracy['top1']:.2f} % -> {settings.dense_file}")
        return network, Plan(), facts | {"accuracy": accuracy, "schedule": schedule}

    return _made_once(settings, settings.dense_file, make)


def decomposed_network(settings: Settings, dense: nn.Module) -> tuple[nn.Module, Plan, dict[str, Any]]:
    """The network before fine-tuning, and its plan. All seeds share it, but where they draw calibration images; facts:
    accuracy (raw), seconds of decomposition, and for a budget the report of `compress`."""

    def make() -> Made:
        start = time.perf_counter()
        network, plan, facts = _decompose(settings, dense)
        facts["seconds"] = round(time.perf_counter() - start, 2)
        return network, plan, facts | {"accuracy": evaluate(make_trainer(settings.cfg), network, settings.data)}

    network, facts = _made_once(settings, settings.decomposed_file, make)
    return network, Plan.from_json(read_metadata(settings.decomposed_file)["plan"]), facts


def _decompose(settings: Settings, dense: nn.Module) -> Made:
    cfg, images = settings.cfg, []
    device = device_of(cfg.trainer) if device_of(cfg.trainer).type == "cuda" else torch.device("cpu")
    dense.to(device)
    if settings.calibration:
        images = settings.data.calibration_batches(cfg.calibration_images, cfg.seed)
        images = [batch.to(device) for batch in images]
    if settings.plan is None:
        result = compress(dense, images, **plain(cfg.budget))
        return result.model, result.plan, {"report": result.report}
    options = {"iterations": cfg.method.iterations} if "iterations" in cfg.method else {}
    network = compress_model(dense, settings.plan, **options)
    return recalibrate_batchnorm(network, images) if images else network, settings.plan, {}


def random_network(settings: Settings) -> nn.Module:
    """The structure of the decomposed network with random weights, to train from scratch."""
    pl.seed_everything(settings.cfg.seed, workers=True, verbose=False)
    assert settings.plan is not None, "a budget is planned on a trained network"
    network = build_structure(build_model(**settings.architecture), settings.plan)
    if settings.finetune.init_std is not None:
        init_truncated_normal(network, settings.finetune.init_std)
    return network


def fine_tuned_network(settings: Settings, network: nn.Module, plan: Plan, raw: dict[str, Any] | None) -> Stage:
    """`network` (of `plan`) after training, from its `raw` accuracy on or from scratch; facts: accuracy, best_top1
    after any epoch, seconds of training."""
    cfg, folder = settings.cfg, settings.folder / settings.run_name
    if not settings.finetune.epochs:
        assert raw is not None, "from scratch, there is nothing without training"
        facts: dict[str, Any] = {"accuracy": raw, "best_top1": raw["top1"], "seconds": 0.0}
    else:
        classifier = train(settings, network, plan, settings.finetune, cfg.seed, folder)
        facts = {
            "accuracy": classifier.accuracy or evaluate(make_trainer(cfg), network, settings.data),
            "best_top1": classifier.best_top1,
            "seconds": round(classifier.seconds, 2),
        }
    if is_main_process():
        save_compressed(folder / NETWORK_FILE, network, plan, metadata=_header(settings, plan))
    return network, facts


def train(
    settings: Settings, network: nn.Module, plan: Plan, schedule: Schedule, seed: int, folder: Path
) -> Classifier:
    """Train `network` in place; folder/last.ckpt is where a killed run goes on."""
    data = settings.data
    pl.seed_everything(seed, workers=True, verbose=False)
    data.batch_size, data.num_images, data.seed = schedule.batch_size, schedule.num_images, seed
    teacher = (
        load_compressed(settings.dense_file, build_model(**settings.architecture)) if schedule.distillation else None
    )
    classifier = Classifier(network, data.num_classes, schedule, _header(settings, plan), teacher)
    trainer = make_trainer(settings.cfg, schedule, folder)
    if schedule.epochs:
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
        options["callbacks"] += [EMAWeightAveraging(device_of(cfg.trainer), decay=schedule.ema)] if schedule.ema else []
        options |= {"check_val_every_n_epoch": schedule.test_every}
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


def is_main_process() -> bool:
    """Whether this process writes: the only one, or rank 0 of a DDP run."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in `folder`; the ranks of one DDP run count as one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for the process that makes {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def command() -> str:
    """What makes this run again."""
    hydra = HydraConfig.get()
    return f"python -m jointsvd.{hydra.job.config_name} {shlex.join(hydra.overrides.task)}"


def _made_once(settings: Settings, file: Path, make: Callable[[], Made]) -> Stage:
    """The network and facts in `file`, where `make` puts them if it is not there."""
    with locked(file.parent):
        if not file.exists():
            network, plan, facts = make()
            if is_main_process():
                metadata = _header(settings, plan) | {"facts": json.dumps(facts), "command": command()}
                save_compressed(file, network, plan, metadata=metadata)
                (file.parent / "last.ckpt").unlink(missing_ok=True)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # the other ranks read the file next
    network = load_compressed(file, build_model(**settings.architecture))
    return network, json.loads(read_metadata(file)["facts"])


def _header(settings: Settings, plan: Plan) -> dict[str, str]:
    """What a file of weights says about the network they are of."""
    return {"architecture": json.dumps(settings.architecture), "plan": plan.to_json()}
