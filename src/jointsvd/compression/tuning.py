"""A little training towards the dense network, without labels, for those who ask for it (``compress(tune=steps)``).

A step takes some calibration images through the network and lowers the KL divergence of its predictions from the dense
network's (Hinton et al., arXiv 1503.02531). Images that take no other part say which steps were worth it.
"""

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.compression.agreement import agreement
from jointsvd.compression.calibration import Loader, beside, images_of, run_batches
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


@random_state_kept()
def tune(model: nn.Module, compressed: nn.Module, loader: Loader, apart: Loader, steps: int, *, seed: int = 0) -> Tuned:
    """Train `compressed`, which `compress` made of `model`, in place. Shared factors stay shared, and batch norms keep
    their running statistics. The weights kept are those, of eight looks on the way and the start, whose predictions are
    closest to the dense network's on the images of `apart`.

    loader: images of one size, as for `compress`. seed: of the order of images. Raises ValueError as `agreement`.
    """
    start = time.perf_counter()
    images = torch.cat([beside(model, images_of(batch)) for batch in loader])
    before = agreement(model, compressed, apart).kl
    best, kept, state = before, 0, deepcopy(compressed.state_dict())
    try:
        for step in _steps(model, compressed, images, steps, seed):
            if step % max(steps // _LOOKS, 1) == 0 or step == steps:
                found = agreement(model, compressed, apart).kl
                if found < best:
                    best, kept, state = found, step, deepcopy(compressed.state_dict())
    finally:
        compressed.load_state_dict(state)
        compressed.zero_grad()
    return Tuned(kept, before, best, time.perf_counter() - start)


def _steps(model: nn.Module, compressed: nn.Module, images: Tensor, steps: int, seed: int) -> Iterator[int]:
    """The number of each step, when it is done."""
    with torch.no_grad():
        wanted = torch.cat([output for _, output in run_batches(model, images.split(_BATCH))]).log_softmax(-1)
    parameters = [parameter for parameter in compressed.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    places = _places(len(images), torch.Generator().manual_seed(seed))
    for step in bar(range(1, steps + 1), "Tuning"):
        chosen = next(places).to(images.device)
        with torch.enable_grad():
            ((_, output),) = run_batches(compressed, [images[chosen]])
            loss = F.kl_div(output.log_softmax(-1), wanted[chosen], log_target=True, reduction="sum") / len(chosen)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        yield step


def _places(num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of places without end, each place once before one comes again."""
    while True:
        yield from torch.randperm(num, generator=generator).split(_BATCH)
