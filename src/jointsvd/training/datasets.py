"""The image sets: digits, Fashion-MNIST, CIFAR, and folders of images such as ImageNet's."""

import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from jointsvd.network.checked import Pixels, Size, Whole
from jointsvd.training.data import ImageData, InMemoryData, Split

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Digits(InMemoryData):
    """scikit-learn's handwritten digits: 8 x 8, 1,797 images, every fifth (stratified, fixed) for testing."""

    num_classes, in_channels = 10, 1
    mean, std, pad, flip = (0.3054,), (0.3187,), 2, False

    def load(self) -> tuple[Split, Split]:
        digits = load_digits()
        images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
        return (images[train], labels[train]), (images[test], labels[test])


class FashionMNIST(InMemoryData):
    """Fashion-MNIST, 28 x 28, 60,000 and 10,000 images.

    root: folder of the four .gz files (or of torchvision's FashionMNIST/raw). Without one, the folder of Debian's
    package dataset-fashion-mnist, or else torchvision's download to `download_root`.
    """

    num_classes, in_channels = 10, 1
    mean, std, pad, flip = (0.2860,), (0.3530,), 2, True

    def __init__(self, image_size: Pixels, root: str | None, download_root: str):
        super().__init__(image_size)
        self.root, self.download_root = root, Path(download_root)

    def load(self) -> tuple[Split, Split]:
        downloaded = self.download_root / "FashionMNIST" / "raw"
        places = [Path(self.root)] if self.root else [DEBIAN_FASHION_MNIST, downloaded]
        if not self.root and not any(_has_idx(place) for place in places):
            _download(
                lambda: torchvision.datasets.FashionMNIST(str(self.download_root), download=True),
                "Fashion-MNIST",
                places,
                "apt-get install dataset-fashion-mnist, or set data.root to the folder with its four .gz files",
            )
        folder = next((place for place in places if _has_idx(place)), None)
        if folder is None:
            raise FileNotFoundError(
                f"Fashion-MNIST is not in {places[0]}; it needs train-images-idx3-ubyte.gz and its three companions "
                "(apt-get install dataset-fashion-mnist, or leave data.root out to download them)"
            )
        return tuple(  # type: ignore[return-value]
            (_read_idx(folder, f"{split}-images-idx3").unsqueeze(1), _read_idx(folder, f"{split}-labels-idx1").long())
            for split in ("train", "t10k")
        )


class CIFAR(InMemoryData):
    """CIFAR-10 or CIFAR-100 from torchvision, which checks the md5 sums of what it reads; downloaded if missing."""

    mean, std, pad, flip = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 4, True

    def __init__(self, image_size: Pixels, num_classes: Size, root: str):
        super().__init__(image_size)
        if num_classes not in (10, 100):
            raise ValueError(f"CIFAR has 10 or 100 classes, not {num_classes}")
        self.num_classes, self.root = num_classes, Path(root)

    def load(self) -> tuple[Split, Split]:
        dataset = torchvision.datasets.CIFAR10 if self.num_classes == 10 else torchvision.datasets.CIFAR100
        name = f"CIFAR-{self.num_classes}"
        advice = f"put {dataset.filename} there (from {dataset.url}), or set data.root to the folder that has it"
        place = self.root / dataset.base_folder

        def read(train: bool) -> Split:
            try:
                images = dataset(str(self.root), train)
            except RuntimeError:  # not there, or not whole
                images = _download(lambda: dataset(str(self.root), train, download=True), name, [place], advice)
            return torch.from_numpy(images.data).movedim(3, 1).contiguous(), torch.tensor(images.targets)

        return read(True), read(False)


class DamagedImage(ValueError):
    """An image that cannot be read. In front of its sentence, loaders put the traceback of their own process."""

    def __init__(self, text: str):
        super().__init__(text.strip().rpartition("\n")[2].rpartition("DamagedImage: ")[2])


class _ImageFolder(torchvision.datasets.ImageFolder):
    def __init__(self, root: str, transform: Callable[..., Any]):
        try:
            super().__init__(root, transform, loader=read_image)
        except FileNotFoundError as error:
            raise ValueError(f"{root} needs a folder of images for each class: {error}") from error

    def fingerprint(self) -> Iterable[bytes]:
        """Names and classes of the images; reading all of ImageNet to hash it would take an hour."""
        yield from (f"{Path(path).name} {label}\n".encode() for path, label in self.samples)


def read_image(path: str) -> Image.Image:
    """An image file in RGB; 16 bits a pixel become 8. Raises DamagedImage, naming the file, for one that cannot be
    read."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                values = np.asarray(image)
                if values.min() < 0 or values.max() >= 2**16:
                    raise ValueError("more than 16 bits a pixel")
                return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")
            if image.mode == "F":
                raise ValueError("its pixels are floats")
            return image.convert("RGB")
    except Exception as error:  # a damaged file raises many kinds
        raise DamagedImage(f"{path} cannot be read as an image ({error}); mend it or take it away") from error


class ImageFolderData(ImageData):
    """A folder with one subfolder a class in each of `train_folder` and `test_folder` (ImageNet's layout).

    Training: random resized crop and mirror image; testing: resize to 256/224 of image_size, centre crop; ImageNet's
    mean and standard deviation. num_classes: null takes the number of subfolders found.
    """

    def __init__(
        self,
        root: str,
        image_size: Pixels,
        num_classes: Size | None,
        train_folder: str,
        test_folder: str,
        num_workers: Whole,
    ):
        super().__init__()
        self.root, self.image_size, self.num_workers = Path(root), image_size, num_workers
        self.folders = train_folder, test_folder
        self.expected_classes = num_classes

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        for folder in self.folders:
            if not (self.root / folder).is_dir():
                raise FileNotFoundError(
                    f"no folder {self.root / folder}; set data.root to a folder with {' and '.join(self.folders)} in "
                    "it, each with one subfolder of images a class (ImageNet: see image-net.org/download)"
                )
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        finish += [v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        crop = [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(round(self.image_size * 256 / 224)), v2.CenterCrop(self.image_size)]
        sets = [
            _ImageFolder(str(self.root / folder), v2.Compose([*resize, *finish]))
            for folder, resize in zip((*self.folders, self.folders[0]), (crop, centre, centre), strict=True)
        ]
        if sets[0].classes != sets[1].classes:
            raise ValueError(f"{self.root}: {' and '.join(self.folders)} do not have the same subfolders")
        self.num_classes = len(sets[0].classes)
        if self.expected_classes not in (None, self.num_classes):
            raise ValueError(f"{self.root} has {self.num_classes} classes, not {self.expected_classes}")
        self.train_set, self.test_set, self._train_set_as_tested = sets

    @property
    def train_set_as_tested(self) -> Dataset:
        return self._train_set_as_tested


def _has_idx(folder: Path) -> bool:
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in names)


def _read_idx(folder: Path, name: str) -> Tensor:
    """A uint8 array in the IDX format, gzipped or not: two zeros, type 8, number of axes, big-endian sizes, bytes."""
    plain, zipped = folder / f"{name}-ubyte", folder / f"{name}-ubyte.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
        num_axes = data[3]
        shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(num_axes)]
        if data[:3] != b"\x00\x00\x08":
            raise ValueError("wrong magic number")
        return torch.frombuffer(bytearray(data[4 + 4 * num_axes :]), dtype=torch.uint8).reshape(shape)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{plain if plain.exists() else zipped} is damaged: {error}") from error


def _download(fetch: Callable[[], Any], name: str, places: Sequence[Path], advice: str) -> Any:
    """What `fetch` returns; one process at a time, and one message if it is not there and cannot be had."""
    try:
        places[-1].parent.mkdir(parents=True, exist_ok=True)
        with FileLock(places[-1].parent / ".download.lock"):
            return fetch()
    except (URLError, RuntimeError, OSError) as error:
        looked = " and ".join(map(str, places))
        raise FileNotFoundError(f"{name} was not found in {looked}, and not downloaded ({error}); {advice}") from error
