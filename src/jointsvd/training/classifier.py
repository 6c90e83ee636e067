"""Training: `Classifier` is the LightningModule, `fit` and `evaluate` run it."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from jointsvd.network.shared import check_sharing
from jointsvd.training.answers import pack
from jointsvd.training.checkpoints import check_finite, read_checkpoint
from jointsvd.training.data import ImageData
from jointsvd.training.recovery import distillation_loss, factors_of, squared_products
from jointsvd.training.schedule import Schedule

_log = logging.getLogger(__name__)
_NO_SCHEDULE = "a Classifier without a schedule only evaluates"


class Classifier(pl.LightningModule):
    """A network, trained with cross-entropy by `schedule`; top-1 and top-5 on the test set after every epoch.

    header: strings kept in checkpoints, that say which network the weights are of. teacher: the dense network, for a
    schedule with distillation.
    accuracy: on the test set after the last epoch so far, as `evaluate` gives it; None if not tested after that epoch.
    best_top1: the highest top-1 (percent) after any tested epoch so far. seconds: of training and testing until the
    last epoch's end. All three survive a resumed run.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        schedule: Schedule | None = None,
        header: Mapping[str, str] | None = None,
        teacher: nn.Module | None = None,
    ):
        super().__init__()
        self.teachers = () if teacher is None else (teacher,)  # in a tuple, so that it is no part of the network
        self.network, self.schedule, self.header = network, schedule, dict(header or {})
        self.metrics = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, average="micro", top_k=min(k, num_classes)) for k in (1, 5)}
        )
        self.correct = CatMetric()
        self.accuracy: dict[str, Any] | None = None
        self.best_top1 = 0.0
        self.seconds = 0.0
        self.finite = torch.ones((), dtype=torch.bool)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=torch.channels_last))

    def on_fit_start(self) -> None:
        self.start = time.perf_counter() - self.seconds
        self.network.to(memory_format=torch.channels_last)
        for teacher in self.teachers:
            dtype = next(self.network.parameters()).dtype  # not float32 in precision bf16-true
            teacher.eval().requires_grad_(False).to(self.device, dtype).to(memory_format=torch.channels_last)

    def on_train_epoch_start(self) -> None:
        self.accuracy = None
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.schedule and (size := self.schedule.image_size(self.current_epoch)):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        loss = self._loss(images, labels)
        self.finite &= loss.detach().isfinite()  # looked at after the epoch: a look waits for the device
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        schedule, logits = self.schedule, self(images)
        assert schedule is not None, _NO_SCHEDULE
        loss = F.cross_entropy(logits, labels)
        for teacher in self.teachers:
            with torch.no_grad():
                wanted = teacher(images.contiguous(memory_format=torch.channels_last))
            share, temperature = schedule.distillation
            loss = (1 - share) * loss + share * distillation_loss(logits, wanted, temperature)
        if schedule.product_decay:
            loss = loss + schedule.weight_decay / 2 * squared_products(self.network)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images).float()
        self.finite = self.finite.to(logits.device) & logits.isfinite().all()
        self.metrics.update(logits, labels)
        self.correct.update(logits.argmax(1) == labels)

    def on_validation_epoch_end(self) -> None:
        values = {name: 100 * value for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        self.log_dict({f"test/{name}": value for name, value in values.items()}, prog_bar=True)
        correct = interleave(self.correct.compute(), self.trainer.world_size)
        self.correct.reset()
        self.accuracy = {name: float(value) for name, value in values.items()} | {"correct": pack(correct.bool())}
        self.best_top1 = max(self.best_top1, self.accuracy["top1"])

    def on_train_epoch_end(self) -> None:
        """Before the checkpoint is written. Raises ValueError, on all ranks, where numbers are not finite."""
        name = f"the network after epoch {self.current_epoch + 1}"
        if not self.trainer.strategy.reduce_boolean_decision(bool(self.finite)):
            raise ValueError(
                f"{name}: its loss or its outputs were NaN or infinite, the training diverged; take a lower learning "
                "rate"
            )
        check_finite(self.network, name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = time.perf_counter() - self.start
        checkpoint |= {"accuracy": self.accuracy, "best_top1": self.best_top1, "header": self.header}
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.accuracy, self.best_top1 = checkpoint["accuracy"], checkpoint["best_top1"]
        self.seconds = checkpoint["seconds"]

    def on_fit_end(self) -> None:
        self.seconds = time.perf_counter() - self.start

    def configure_optimizers(self) -> Any:
        schedule = self.schedule
        assert schedule is not None, _NO_SCHEDULE
        factors = factors_of(self.network) if schedule.product_decay else []
        taken = set(factors)
        groups: list[dict[str, Any]] = [{"params": [p for p in self.network.parameters() if p not in taken]}]
        groups += [{"params": factors, "weight_decay": 0.0}] if factors else []  # theirs is in the loss
        optimizer: Optimizer = SGD(
            groups,  # a shared factor comes once
            lr=schedule.lr,
            momentum=schedule.momentum,
            nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay,
        )
        steps = self.trainer.estimated_stepping_batches / schedule.epochs
        scheduler = LambdaLR(optimizer, lambda step: schedule.factor(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, folder: Path) -> None:
    """Train; every epoch leaves folder/last.ckpt, from which a killed run goes on.

    With data in memory and no dropout in the network, it ends with the bits of an unbroken run on as many threads.
    Raises ValueError for shared factors that came apart, and if loss, outputs or weights are not finite in an epoch,
    whose checkpoint is then not written.
    """
    check_sharing(classifier.network)
    last = folder / "last.ckpt"
    checkpoint = read_checkpoint(last) if last.exists() else None
    if checkpoint and checkpoint["epoch"] + 1 == trainer.max_epochs:  # Lightning would leave weights, not their average
        classifier.load_state_dict(checkpoint["state_dict"])
        classifier.on_load_checkpoint(checkpoint)
        return
    trainer.fit(classifier, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)


def evaluate(trainer: pl.Trainer, network: nn.Module, data: ImageData) -> dict[str, Any]:
    """On the test set: {"top1": percent, "top5": percent, "correct": which images were right, by `answers.pack`}."""
    network.to(memory_format=torch.channels_last)
    classifier = Classifier(network, data.num_classes)
    trainer.validate(classifier, datamodule=data, verbose=False)
    assert classifier.accuracy is not None
    if not classifier.finite:
        _log.warning("the network's outputs are NaN or infinite for some test images, which count as wrong")
    return classifier.accuracy


def interleave(values: Tensor, num_ranks: int) -> Tensor:
    """Values gathered rank after rank, in the order of the test set: rank r took images r, r + num_ranks, ..."""
    order = torch.cat([torch.arange(rank, len(values), num_ranks) for rank in range(num_ranks)])
    return torch.empty_like(values).scatter_(0, order.to(values.device), values)


def top1(run: Callable[[Tensor], Tensor], data: ImageData) -> float:
    """Percent of the test images that `run`, which computes the logits of images (N, C, H, W), gets right."""
    accuracy = MulticlassAccuracy(data.num_classes, average="micro")
    for batch in data.val_dataloader():
        images, labels = data.on_after_batch_transfer(batch, 0)
        accuracy.update(torch.as_tensor(run(images)), labels)
    return 100 * float(accuracy.compute())
