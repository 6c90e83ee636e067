"""How far a compressed network is from the dense one, on images that shaped nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression.calibration import Loader, images_of, run_batches


@dataclass(frozen=True)
class Agreement:
    """kl: mean Kullback-Leibler divergence of the compressed network's predictions from the dense one's, nats an image.
    top1_agreement: percent of the images on which both find the same class most likely."""

    images: int
    kl: float
    top1_agreement: float

    def as_dict(self, predicted: float) -> dict[str, Any]:
        """Beside the divergence that was predicted."""
        return {**asdict(self), "predicted_kl": predicted}


@torch.no_grad()
def agreement(dense: nn.Module, compressed: nn.Module, loader: Loader) -> Agreement:
    """Of two networks that return logits (N, ..., classes), on the images of `loader`. Raises ValueError as
    `collect_statistics`."""
    num, kl, same = 0, 0.0, 0.0
    for images, logits in run_batches(dense, loader):
        ((_, others),) = run_batches(compressed, [images])
        p, q = (x.flatten(0, -2).double().log_softmax(-1) for x in (logits, others))
        kl += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).double().mean()) * len(images)
        num += len(images)
    return Agreement(num, kl / num, 100 * same / num)


class Part:
    """The images of a loader whose number, counted in rounds of `every`, is one of `places`."""

    def __init__(self, loader: Loader, every: int, places: Iterable[int]):
        self.loader, self.every, self.places = loader, every, torch.tensor(sorted(places))

    def __iter__(self) -> Iterator[Tensor]:
        start = 0
        for batch in self.loader:
            images = images_of(batch)
            numbers = torch.arange(start, start + len(images)) % self.every
            start += len(images)
            chosen = torch.isin(numbers, self.places)
            if chosen.any():
                yield images[chosen.to(images.device)]
