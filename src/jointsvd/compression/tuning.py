"""A little training towards the dense network, without labels, for those who ask for it (``compress(tune=steps)``).

A step takes some calibration images through the network and lowers the KL divergence of its predictions from the dense
network's (Hinton et al., arXiv 1503.02531). Images that take no other part say which steps were worth it.
"""

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression import losses
from jointsvd.compression.agreement import agreement
from jointsvd.compression.batches import joined, part, size
from jointsvd.compression.calibration import TASK, Loader, run_batches
from jointsvd.compression.task import Task, beside
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept

_BATCH = 64
_RATE = 1e-4  # of Adam, at its peak
_LOOKS = 8  # how often the images apart are looked at


@dataclass(frozen=True)
class Tuned:
    """steps: those that were kept, of those asked for. kl_before, kl: mean KL divergence from the dense network on the
    images apart, nats an image. seconds: of all steps."""

    steps: int
    kl_before: float
    kl: float
    seconds: float


def check_tuning(apart: Sequence[Any], task: Task) -> None:
    """Raises ValueError if a network cannot be tuned: without images apart, or by a loss of the user's, which says
    nothing of what the dense network does."""
    if not apart:
        raise ValueError("tune needs 4 calibration images or more, of which one judges it")
    if task.kind is None:
        raise ValueError(f"tune needs a loss that compares two outputs, one of {', '.join(losses.KINDS)}")


@random_state_kept()
def tune(
    model: nn.Module,
    compressed: nn.Module,
    loader: Loader,
    apart: Loader,
    steps: int,
    *,
    task: Task = TASK,
    seed: int = 0,
) -> Tuned:
    """Train `compressed`, which `compress` made of `model`, in place. Shared factors stay shared, and batch norms keep
    their running statistics. The weights kept are those, of eight looks on the way and the start, whose predictions are
    closest to the dense network's on the images of `apart`.

    loader: images of one size, as for `compress`. seed: of the order of images. Raises ValueError as `agreement` and
    `check_tuning`.
    """
    check_tuning(list(apart), task)
    start = time.perf_counter()
    before = agreement(model, compressed, apart, task).kl
    best, kept, state = before, 0, deepcopy(compressed.state_dict())
    images = beside(model, joined([task.batch(batch) for batch in loader]))
    try:
        for step in _steps(model, compressed, images, steps, task, seed):
            if step % max(steps // _LOOKS, 1) == 0 or step == steps:
                found = agreement(model, compressed, apart, task).kl
                if found < best:
                    best, kept, state = found, step, deepcopy(compressed.state_dict())
    finally:
        compressed.load_state_dict(state)
        compressed.zero_grad()
    return Tuned(kept, before, best, time.perf_counter() - start)


def _steps(model: nn.Module, compressed: nn.Module, images: Any, steps: int, task: Task, seed: int) -> Iterator[int]:
    """The number of each step, when it is done."""
    assert task.kind
    parameters = [parameter for parameter in compressed.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    places = _places(size(images), torch.Generator().manual_seed(seed))
    for step in bar(range(1, steps + 1), "Tuning"):
        batch = part(images, next(places))
        with torch.no_grad():
            ((_, wanted),) = run_batches(model, [batch], task)
        with torch.enable_grad():
            ((_, output),) = run_batches(compressed, [batch], task)
            both = (losses.rows(task.kind, x) for x in (wanted, output))
            loss = losses.divergence(task.kind, *both) / size(batch)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        yield step


def _places(num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of places without end, each place once before one comes again."""
    while True:
        yield from torch.randperm(num, generator=generator).split(_BATCH)
