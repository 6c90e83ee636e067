"""How far a compressed network is from the dense one, on images that shaped nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from jointsvd.compression import losses
from jointsvd.compression.batches import num_images, part, size
from jointsvd.compression.calibration import TASK, Loader, run_batches
from jointsvd.compression.norms import Channels
from jointsvd.compression.task import Task
from jointsvd.network.copying import copied


@dataclass(frozen=True)
class Agreement:
    """kl: mean Kullback-Leibler divergence of the compressed network's predictions from the dense one's, nats an image;
    for a loss of the user's half the mean square of its change. top1_agreement: percent of the predictions that are
    one; None where the outputs are no logits."""

    images: int
    kl: float
    top1_agreement: float | None

    def as_dict(self, predicted: float) -> dict[str, Any]:
        """Beside the divergence that was predicted."""
        return {**asdict(self), "predicted_kl": predicted}


@torch.no_grad()
def agreement(dense: nn.Module, compressed: nn.Module, loader: Loader, task: Task = TASK) -> Agreement:
    """Of two networks that return what `task` says, on the images of `loader`. Raises ValueError as
    `collect_statistics`."""
    dense, compressed = copied(dense), copied(compressed)
    if task.kind is None:
        return _of_scalars(dense, compressed, loader, task)
    num, kl, same, spread = 0, 0.0, 0.0, Channels()
    for batch, output in run_batches(dense, loader, task):
        ((_, other),) = run_batches(compressed, [batch], task)
        p, q = (losses.rows(task.kind, x).double() for x in (output, other))
        kl += float(losses.divergence(task.kind, p, q))
        same += (losses.same(task.kind, p, q) or 0.0) * size(batch)
        num += size(batch)
        spread.add(output)
    if task.kind == "gaussian":
        return Agreement(num, kl / num / spread.variance, None)
    return Agreement(num, kl / num, 100 * same / num)


def _of_scalars(dense: nn.Module, compressed: nn.Module, loader: Loader, task: Task) -> Agreement:
    """Image by image."""
    squares = []
    for batch in loader:
        given = task.batch(batch)
        for index in range(size(given)):
            one = [part(given, slice(index, index + 1))]
            ((_, output),), ((_, other),) = (run_batches(network, one, task) for network in (dense, compressed))
            squares.append(float(task.value(other) - task.value(output)) ** 2)
    return Agreement(len(squares), sum(squares) / len(squares) / 2, None)


class Part:
    """The images of a loader whose number, counted in rounds of `every`, is one of `places`."""

    def __init__(self, loader: Loader, every: int, places: Iterable[int], task: Task = TASK):
        self.loader, self.every, self.places, self.task = loader, every, torch.tensor(sorted(places)), task

    @property
    def num_images(self) -> int | None:
        whole = num_images(self.loader)
        return whole if whole is None else int(torch.isin(torch.arange(whole) % self.every, self.places).sum())

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for given in self.loader:
            batch = self.task.batch(given)
            numbers = torch.arange(start, start + size(batch)) % self.every
            start += size(batch)
            chosen = torch.isin(numbers, self.places)
            if chosen.any():
                yield part(batch, chosen)
