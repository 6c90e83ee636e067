"""A little training towards the dense network, without labels, for those who ask for it (``compress(tune=steps)``).

A step takes some calibration images through both networks and lowers what separates them: the KL divergence of the
predictions, and at every layer the difference of what it receives, for its size. Factors follow their layers in the
dense network (Hinton et al., arXiv 1503.02531; Romero et al., arXiv 1412.6550). Images that take no other part say
which steps were worth it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jointsvd.compression.agreement import agreement
from jointsvd.compression.calibration import Loader, beside, evaluating, images_of
from jointsvd.network.layers import is_matrix
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept

_BATCH = 64
_RATE = 2e-4  # of Adam, at its peak
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
    parameters = [parameter for parameter in compressed.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    batches = _drawn(images, torch.Generator().manual_seed(seed))
    for step in bar(range(1, steps + 1), "Tuning"):
        with evaluating(model), evaluating(compressed), torch.enable_grad():
            loss = _distance(model, compressed, next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step


def _drawn(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end, each image once before one comes again."""
    while True:
        order = torch.randperm(len(images), generator=generator)
        for places in order.split(_BATCH):
            yield images[places.to(images.device)]


def _distance(model: nn.Module, compressed: nn.Module, images: Tensor) -> Tensor:
    names = [name for name, module in model.named_modules() if is_matrix(module)]
    with torch.no_grad(), _received(model, names) as wanted:
        p = model(images).flatten(0, -2).log_softmax(-1)
    with _received(compressed, names) as found:
        q = compressed(images).flatten(0, -2).log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    both = [name for name in names if name in wanted and name in found]
    apart = [(wanted[name] - found[name]).square().mean() / _size(wanted[name]) for name in both]
    return divergence + torch.stack(apart).mean()


def _size(x: Tensor) -> Tensor:
    return x.square().mean().clamp_min(torch.finfo(x.dtype).tiny)


@contextmanager
def _received(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers of these names receive while it runs."""
    found: dict[str, Tensor] = {}

    def recorder(name: str):  # type: ignore[no-untyped-def]
        return lambda _, args: found.update({name: args[0]})

    handles = [network.get_submodule(name).register_forward_pre_hook(recorder(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
