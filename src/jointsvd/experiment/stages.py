"""The stages of a run, each a file made once: the dense network, the decomposed network, the fine-tuned network."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from filelock import FileLock, Timeout
from torch import nn

from jointsvd.compression.calibration import recalibrate_batchnorm
from jointsvd.compression.compressed import compress
from jointsvd.experiment.settings import NETWORK_FILE, Settings
from jointsvd.network.files import load_compressed, read_metadata, save_compressed
from jointsvd.network.parsing import parse_json
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import apply_plan, build_structure
from jointsvd.results.tracking import make_logger
from jointsvd.training.checkpoints import check_finite, load_weights
from jointsvd.training.classifier import Classifier, evaluate, fit
from jointsvd.training.devices import device_of, is_main_process
from jointsvd.training.models import build_model, init_truncated_normal
from jointsvd.training.schedule import Schedule
from jointsvd.training.trainer import evaluation_trainer, training_trainer

Stage = tuple[nn.Module, dict[str, Any]]  # a network, and facts about how it came about
Made = tuple[nn.Module, Plan, dict[str, Any]]


def dense_network(settings: Settings) -> Stage:
    """The trained dense network, from a checkpoint, pretrained weights, or trained here; facts: accuracy, schedule,
    seconds of training if it was trained here."""

    def make() -> Made:
        network, facts = _trained(settings)
        check_finite(network, f"the dense network ({facts['schedule']})")
        facts["accuracy"] = evaluate(evaluation_trainer(settings.trainer), network, settings.data)
        print(f"Dense {settings.model.name}: {facts['accuracy']['top1']:.2f} % -> {settings.dense_file}")
        return network, Plan(), facts

    return _made_once(settings, settings.dense_file, make)


def _trained(settings: Settings) -> Stage:
    """The dense network and its schedule; with the seconds, if it is trained here."""
    model, checkpoint = settings.model, settings.model.checkpoint
    pl.seed_everything(settings.baseline_seed, workers=True, verbose=False)
    network = build_model(**settings.architecture, pretrained=not checkpoint and settings.pretrained)
    if checkpoint:
        load_weights(network, checkpoint)
        return network, {"schedule": f"checkpoint {Path(checkpoint).name}"}
    if not settings.trains_dense():
        return network, {"schedule": f"pretrained weights of {model.source}"}
    schedule = settings.baseline
    if schedule.init_std is not None and not settings.pretrained:
        init_truncated_normal(network, schedule.init_std)
    print(f"Training the dense {model.name}: {schedule}")
    folder = settings.dense_file.parent
    seconds = train(settings, network, Plan(), schedule, settings.baseline_seed, folder).seconds
    wandb.finish()
    return network, {"schedule": str(schedule), "seconds": seconds}


def decomposed_network(settings: Settings, dense: nn.Module) -> Made:
    """The network before fine-tuning, and its plan. All seeds share it, but where they draw calibration images; facts:
    accuracy (raw), seconds of decomposition, and for a budget the report of `compress`."""

    def make() -> Made:
        start = time.perf_counter()
        network, plan, facts = _decompose(settings, dense)
        facts["seconds"] = round(time.perf_counter() - start, 2)
        return (
            network,
            plan,
            facts | {"accuracy": evaluate(evaluation_trainer(settings.trainer), network, settings.data)},
        )

    network, facts = _made_once(settings, settings.decomposed_file, make)
    return network, Plan.from_json(read_metadata(settings.decomposed_file)["plan"]), facts


def _decompose(settings: Settings, dense: nn.Module) -> Made:
    device = device_of(settings.trainer)
    device = device if device.type == "cuda" else torch.device("cpu")
    dense.to(device)
    images: list[torch.Tensor] = []
    if settings.calibration:
        drawn = settings.data.calibration_batches(settings.calibration_images, settings.seed)
        images = [batch.to(device) for batch in drawn]
    if settings.plan is None:
        result = compress(dense, images, **settings.budget)
        facts = {name: getattr(result, name) for name in ("report", "untouched", "held_out")}
        return result.model, result.plan, facts | ({"tuned": asdict(result.tuned)} if result.tuned else {})
    options = {"iterations": settings.method["iterations"]} if "iterations" in settings.method else {}
    network = apply_plan(dense, settings.plan, **options)
    return recalibrate_batchnorm(network, images) if images else network, settings.plan, {}


def random_network(settings: Settings) -> nn.Module:
    """The structure of the decomposed network with random weights, to train from scratch."""
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    assert settings.plan is not None, "a budget is planned on a trained network"
    network = build_structure(build_model(**settings.architecture), settings.plan)
    if settings.finetune.init_std is not None:
        init_truncated_normal(network, settings.finetune.init_std)
    return network


def fine_tuned_network(settings: Settings, network: nn.Module, plan: Plan, raw: dict[str, Any] | None) -> Stage:
    """`network` (of `plan`) after training, from its `raw` accuracy on or from scratch; facts: accuracy, best_top1
    after any epoch, seconds of training."""
    folder = settings.run_folder
    if not settings.finetune.epochs:
        assert raw is not None, "from scratch, there is nothing without training"
        facts: dict[str, Any] = {"accuracy": raw, "best_top1": raw["top1"], "seconds": 0.0}
    else:
        classifier = train(settings, network, plan, settings.finetune, settings.seed, folder)
        facts = {
            "accuracy": classifier.accuracy or evaluate(evaluation_trainer(settings.trainer), network, settings.data),
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
    logger = make_logger(settings.logger, settings.values, folder) if settings.logger else None
    trainer = training_trainer(settings.trainer, schedule, folder, logger)
    if schedule.epochs:
        fit(trainer, classifier, data, folder)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return classifier


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


def _made_once(settings: Settings, file: Path, make: Callable[[], Made]) -> Stage:
    """The network and facts in `file`, where `make` puts them if it is not there."""
    with locked(file.parent):
        if not file.exists():
            network, plan, facts = make()
            if is_main_process():
                metadata = _header(settings, plan) | {"facts": json.dumps(facts), "command": settings.command}
                save_compressed(file, network, plan, metadata=metadata)
                (file.parent / "last.ckpt").unlink(missing_ok=True)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # the other ranks read the file next
    network = load_compressed(file, build_model(**settings.architecture))
    return network, _facts(file)


def _facts(file: Path) -> dict[str, Any]:
    """Raises ValueError for a file without them, which another run did not write."""
    header = read_metadata(file)
    facts = parse_json(header.get("facts", ""), f"what {file} says of itself")
    if not isinstance(facts, dict) or "accuracy" not in facts:
        raise ValueError(f"{file} says no accuracy of itself: a run did not write it; move it away")
    return facts


def _header(settings: Settings, plan: Plan) -> dict[str, str]:
    """What a file of weights says about the network they are of."""
    return {"architecture": json.dumps(settings.architecture), "plan": plan.to_json()}
