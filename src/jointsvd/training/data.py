"""Image data as LightningDataModules: batches, augmentation and normalisation; datasets.py has the sets themselves.

Small sets live in memory as uint8 tensors; a batch is one indexing operation, and it is augmented and normalised by
tensor operations on the training device. Which images a rank sees, and how those in memory are augmented, follows from
(seed, epoch, step, rank) alone, so that a resumed run sees what an unbroken one would have seen.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence, Sized
from functools import cached_property
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

from jointsvd.network.checked import Pixels

_MAX_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # half of the machine's memory
Split = tuple[Tensor, Tensor]  # uint8 images (N, C, H, W), int64 labels (N)


class ImageData(pl.LightningDataModule):
    """Loaders over `train_set` and `test_set`, which subclasses make in `setup`.

    batch_size is global: each of R processes takes batch_size / R images a step. num_images trains on that many images
    drawn once for all (None: all of them). stages.py sets them and the seed.
    """

    train_set: Dataset
    test_set: Dataset
    num_classes: int
    in_channels: int = 3
    image_size: int
    batch_size: int = 128
    num_images: int | None = None
    seed: int = 0
    num_workers: int = 0

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.in_channels, self.image_size, self.image_size

    @property
    def num_train(self) -> int:
        return len(cast(Sized, self.train_set))

    @property
    def num_test(self) -> int:
        return len(cast(Sized, self.test_set))

    @property
    def train_set_as_tested(self) -> Dataset:
        """The training images without augmentation."""
        return self.train_set

    def normalize(self, images: Tensor) -> Tensor:
        """Images of a batch as networks take them, where `train_set` does not give them so."""
        return images

    def calibration_batches(self, num_images: int, seed: int) -> list[Tensor]:
        """`num_images` training images, drawn by `seed`, as they would be tested; without labels. Raises ValueError for
        none, or more than there are."""
        if not 1 <= num_images <= self.num_train:
            raise ValueError(f"calibration_images={num_images} of {self.num_train} training images")
        order = torch.randperm(self.num_train, generator=torch.Generator().manual_seed(seed))[:num_images]
        size = -(-num_images // -(-num_images // 128))  # nearly equal batches: each counts alike in batch norms
        loader = self._loader(Subset(self.train_set_as_tested, order.tolist()), size, range(num_images))
        return [self.normalize(images) for images, _ in loader]

    @cached_property
    def fingerprint(self) -> str:
        """Names the images and what is done to them, wherever they lie: a hash of the sets, and the image size."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.input_size}".encode())
        for dataset in (self.train_set, self.test_set):
            for part in dataset.fingerprint():  # type: ignore[attr-defined]
                digest.update(part)
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader:
        rank, world_size = _rank()
        chosen = self.train_set
        if self.num_images is not None:
            order = torch.randperm(self.num_train, generator=torch.Generator().manual_seed(0))
            chosen = Subset(self.train_set, order[: self.num_images].tolist())
        sampler: DistributedSampler = DistributedSampler(
            chosen, world_size, rank, shuffle=True, seed=self.seed, drop_last=True
        )  # shuffles by (seed, epoch); Lightning tells it the epoch
        if self.batch_size % world_size:
            raise ValueError(f"batch_size {self.batch_size} is global; it must be a multiple of {world_size} processes")
        return self._loader(chosen, self.batch_size // world_size, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The test set: the paper has no other, and reports the best test accuracy of all epochs beside the last."""
        rank, world_size = _rank()
        # a plain range, where DistributedSampler would repeat images to give all ranks equally many
        return self._loader(self.test_set, 256, range(rank, self.num_test, world_size))

    def _loader(self, dataset: Dataset, batch_size: int, sampler: Any, drop_last: bool = False) -> DataLoader:
        options: dict[str, Any] = {"collate_fn": _as_is} if isinstance(self.train_set, TensorImages) else {}
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )


class TensorImages(Dataset):
    """Images and labels in memory, indexed a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]

    def fingerprint(self) -> Iterable[bytes]:
        yield from (tensor.numpy().tobytes() for tensor in (self.images, self.labels))


class InMemoryData(ImageData):
    """A small set, read once by `load`; augmented by a random crop after zero padding and, if `flip`, a mirror image.

    image_size: side in pixels; images of another size are resized when they are read.
    """

    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    pad: ClassVar[int]
    flip: ClassVar[bool]

    def __init__(self, image_size: Pixels):
        super().__init__()
        self.image_size = image_size

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """(train, test). Raises FileNotFoundError, saying how to get them, if they are not there."""

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        (train_images, train_labels), (test_images, test_labels) = self.load()
        num_bytes = (len(train_images) + len(test_images)) * self.in_channels * self.image_size**2
        if num_bytes > _MAX_BYTES:
            raise ValueError(
                f"images of {self.image_size} pixels would take {num_bytes / 2**30:.0f} GB of memory, where this set "
                "lives: take a smaller data.image_size"
            )
        self.train_set = TensorImages(_resize(train_images, self.image_size), train_labels)
        self.test_set = TensorImages(_resize(test_images, self.image_size), test_labels)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            step, epoch = self.trainer.global_step, self.trainer.current_epoch
            seed = hash((self.seed, epoch, step, self.trainer.global_rank))  # of integers: equal in every process
            images = augment(images, self.pad, self.flip, torch.Generator().manual_seed(seed & (2**63 - 1)))
        return self.normalize(images), labels

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32, (x / 255 - mean) / std."""
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop each image (N, C, H, W) at random from itself with `pad` zeros around, mirrored by chance if `flip`."""
    num, _, height, width = images.shape
    offsets = torch.randint(2 * pad + 1, (2, num, 1), generator=generator)
    mirrored = torch.rand(num, 1, generator=generator) < (0.5 if flip else 0.0)
    rows = offsets[0] + torch.arange(height)
    cols = offsets[1] + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    rows, cols = rows.to(images.device), cols.to(images.device)
    batch = torch.arange(num, device=images.device)[:, None, None]
    cropped = F.pad(images, (pad,) * 4).movedim(1, 3)[batch, rows[:, :, None], cols[:, None, :]]
    return cropped.movedim(3, 1)


def _as_is(batch: Split) -> Split:
    return batch


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return v2.functional.resize(images, [size, size], antialias=True)
