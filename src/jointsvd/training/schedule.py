"""How one phase of training goes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from jointsvd.network.checked import AboveZero, Count, NotNegative, Pixels, Range, Whole, check_fields


@dataclass(frozen=True)
class Schedule:
    """One phase of training by SGD.

    With one_cycle the learning rate rises linearly over the first fifth of all steps and falls to zero as a cosine,
    `lr` being its peak. Without, it is `lr`, divided by 10 after each of the `milestones` (epochs), but warmup_lrs[e]
    in the first epochs e. init_std: standard deviation of the truncated normal that weights start from; null keeps the
    network's own initialisation. image_sizes: [[6, 16], [10, 20]] trains on images 16 pixels wide up to epoch 6, 20 up
    to epoch 10, and whole ones from there. num_images: train on that many images, the same ones always (all: null).
    test_every: epochs between two tests. distillation: [share of the loss, temperature] of learning the dense network's
    predictions. product_decay: weight_decay of the products U V instead of the factors. ema: decay a step of the moving
    average of the weights that takes their place. Raises ValueError for values of wrong types or out of range.
    """

    epochs: Annotated[int, Range(0, 10**5)]
    batch_size: Count
    lr: AboveZero
    momentum: Annotated[float, Range(0, 1, open="most")] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    one_cycle: bool = False
    milestones: Sequence[Whole] = ()
    warmup_lrs: Sequence[NotNegative] = ()
    init_std: AboveZero | None = None
    image_sizes: Sequence[tuple[Count, Pixels]] = ()
    num_images: Count | None = None
    test_every: Count = 1
    distillation: Sequence[AboveZero] = ()
    product_decay: bool = False
    ema: Annotated[float, Range(0, 1, open="most")] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "a recipe needs epochs >= 0, batch_size >= 1, lr > 0; ")
        if self.nesterov and not self.momentum:
            raise ValueError("a recipe with nesterov=true needs momentum above 0")
        if self.one_cycle and (self.milestones or self.warmup_lrs):
            raise ValueError("a recipe is one_cycle, or has milestones and warmup_lrs; not both")
        if self.num_images is not None and self.num_images < self.batch_size:
            raise ValueError(f"a recipe needs num_images of one batch or more, got {self.num_images}")
        learns = list(self.distillation)
        if learns and not (len(learns) == 2 and learns[0] <= 1):
            raise ValueError(f"distillation is [share of the loss up to 1, temperature above 0], got {learns}")

    def factor(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch, as a multiple of `lr`."""
        if self.one_cycle:
            rise = 0.2 * self.epochs
            if epoch < rise:
                return max(epoch / rise, 0.01)
            return 0.5 * (1 + math.cos(math.pi * (epoch - rise) / (self.epochs - rise)))
        if epoch < len(self.warmup_lrs):
            return self.warmup_lrs[int(epoch)] / self.lr
        return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def image_size(self, epoch: int) -> int | None:
        """Width in pixels of training images in an epoch; None: as they are."""
        return next((pixels for until, pixels in self.image_sizes if epoch < until), None)

    def __str__(self) -> str:
        if not self.epochs:
            return "no training"
        epochs = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        momentum = f"{'Nesterov ' * self.nesterov}momentum {self.momentum:g}"
        epochs += f" of {self.num_images:,} images" if self.num_images else ""
        parts = [epochs, f"batch {self.batch_size}", f"SGD lr {self.lr:g}", momentum]
        parts += [f"weight decay {self.weight_decay:g}"]
        parts += ["one cycle"] if self.one_cycle else []
        parts += [f"/ 10 after {', '.join(map(str, self.milestones))}"] if self.milestones else []
        parts += [f"warm-up {', '.join(f'{lr:g}' for lr in self.warmup_lrs)}"] if self.warmup_lrs else []
        parts += [f"truncated normal start {self.init_std:g}"] if self.init_std else []
        parts += [f"{pixels} pixels up to epoch {until}" for until, pixels in self.image_sizes]
        if self.distillation:
            parts += ["distillation {:g} at temperature {:g}".format(*self.distillation)]
        parts += ["decay of products U V"] if self.product_decay else []
        parts += [f"EMA {self.ema:g}"] if self.ema else []
        return ", ".join(parts)
