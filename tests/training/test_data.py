"""Data sets in their real file formats, written small by the tests."""

import gzip
import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from jointsvd.training import datasets
from jointsvd.training.data import augment
from jointsvd.training.datasets import CIFAR, Digits, FashionMNIST, ImageFolderData, read_image

RANDOM = np.random.default_rng(0)


def test_digits_are_split_alike_every_time_and_enlarged():
    first, second = Digits(16), Digits(16)
    first.setup()
    second.setup()
    assert (first.num_train, first.num_test) == (1437, 360)
    assert first.train_set.images.shape == (1437, 1, 16, 16)
    assert first.train_set.images.dtype == torch.uint8
    assert torch.equal(first.test_set.images, second.test_set.images)
    assert torch.bincount(first.test_set.labels).min() >= 34  # stratified
    values = first.normalize(first.train_set.images)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def fashion(tmp_path):
    arrays = {}
    for split, num in (("train", 20), ("t10k", 8)):
        arrays[split] = RANDOM.integers(0, 256, (num, 28, 28)), RANDOM.integers(0, 10, num)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", arrays[split][0])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", arrays[split][1])
    return tmp_path, arrays


def test_fashion_mnist_reads_its_files(fashion, monkeypatch):
    folder, arrays = fashion
    data = FashionMNIST(28, str(folder), "unused")
    data.setup()
    assert (data.train_set.images[:, 0].numpy() == arrays["train"][0]).all()
    assert (data.test_set.labels.numpy() == arrays["t10k"][1]).all()
    # without a root: the folder of Debian's package
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", folder)
    debian = FashionMNIST(28, None, "unused")
    debian.setup()
    assert torch.equal(debian.train_set.images, data.train_set.images)


def test_fashion_mnist_uncompressed_as_torchvision_keeps_it(fashion, tmp_path, monkeypatch):
    folder, _ = fashion
    raw = tmp_path / "download" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in folder.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    data = FashionMNIST(28, None, str(tmp_path / "download"))
    data.setup()
    assert (data.num_train, data.num_test) == (20, 8)


def test_damaged_fashion_mnist_is_refused(fashion):
    folder, _ = fashion
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        FashionMNIST(28, str(folder), "unused").setup()


def test_missing_sets_say_where_they_were_looked_for_and_how_to_get_them(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("no internet")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    for data, *words in [
        (FashionMNIST(28, str(tmp_path), "x"), str(tmp_path), "dataset-fashion-mnist"),
        (FashionMNIST(28, None, str(tmp_path / "d")), "debian", "FashionMNIST/raw", "dataset-fashion-mnist"),
        (CIFAR(32, 10, str(tmp_path / "c")), "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        (ImageFolderData(str(tmp_path), 32, None, "train", "val", 0), f"{tmp_path}/train", "data.root"),
    ]:
        with pytest.raises(FileNotFoundError) as caught:
            data.setup()
        assert all(word in str(caught.value) for word in words), caught.value


def write_cifar(root, dataset, key, num_classes, monkeypatch):
    """CIFAR's pickled batches, with the md5 sums torchvision checks set to those of the small files."""
    folder = root / dataset.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name, num):
        content = {"data": RANDOM.integers(0, 256, (num, 3072)).astype(np.uint8)}
        return write(name, content | {key: RANDOM.integers(0, num_classes, num).tolist()})

    names = {"label_names" if key == "labels" else "fine_label_names": [str(i) for i in range(num_classes)]}
    monkeypatch.setattr(dataset, "train_list", [batch(f"train{i}", 10) for i in range(2)])
    monkeypatch.setattr(dataset, "test_list", [batch("test", 6)])
    meta_name, meta_md5 = write("meta", names)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "filename": meta_name, "md5": meta_md5})
    return folder


@pytest.mark.parametrize(("num_classes", "key"), [(10, "labels"), (100, "fine_labels")])
def test_cifar_reads_its_files(tmp_path, monkeypatch, num_classes, key):
    dataset = datasets.torchvision.datasets.CIFAR10 if num_classes == 10 else datasets.torchvision.datasets.CIFAR100
    folder = write_cifar(tmp_path, dataset, key, num_classes, monkeypatch)
    data = CIFAR(32, num_classes, str(tmp_path))
    data.setup()
    assert data.train_set.images.shape == (20, 3, 32, 32)
    assert data.test_set.images.shape == (6, 3, 32, 32)
    raw = pickle.loads((folder / "test").read_bytes())
    assert (data.test_set.images[2].flatten().numpy() == raw["data"][2]).all()
    assert data.test_set.labels.tolist() == raw[key]


def test_image_folders(folders):
    data = ImageFolderData(str(folders), 32, None, "train", "val", 0)
    data.batch_size = 5
    data.setup()
    assert (data.num_classes, data.num_train, data.num_test) == (3, 15, 6)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (5, 3, 32, 32)
    assert images.dtype == torch.float32
    assert sorted(torch.cat([batch[1] for batch in data.val_dataloader()]).tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="3 classes, not 1000"):
        ImageFolderData(str(folders), 32, 1000, "train", "val", 0).setup()
    (folders / "val" / "fox").rename(folders / "val" / "wolf")
    with pytest.raises(ValueError, match="same subfolders"):
        ImageFolderData(str(folders), 32, None, "train", "val", 0).setup()


def test_images_of_16_bits_keep_their_brightness(folders, tmp_path):
    values = np.linspace(0, 2**16 - 1, 64).reshape(8, 8)
    for name in ("png", "tif"):
        path = tmp_path / f"deep.{name}"
        Image.fromarray(values.astype(np.uint16)).save(path)
        pixels = np.asarray(read_image(str(path)))
        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels[..., 0] - values / 256).max() <= 1
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "floats.tif")
    Image.fromarray((values * 100).astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("floats", "wide"):
        with pytest.raises(ValueError, match=rf"{name}\.tif cannot be read as an image"):
            read_image(str(tmp_path / f"{name}.tif"))


def test_augmentation_crops_and_mirrors_each_image_by_itself():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 3, 8, 8).contiguous()
    generator = torch.Generator().manual_seed(1)
    augmented = augment(images, 2, True, generator)
    assert augmented.shape == images.shape
    assert (augmented[:, 0] == augmented[:, 1]).all()  # channels move together
    padded = torch.nn.functional.pad(images[:1, :1], (2,) * 4)[0, 0]
    crops = [padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    expected = {tuple(crop.flatten().tolist()) for plain in crops for crop in (plain, plain.flip(1))}
    seen = {tuple(image[0].flatten().tolist()) for image in augmented}
    assert seen <= expected
    assert len(seen) > 40  # of 50
    unmoved = augment(images, 0, False, generator)
    assert torch.equal(unmoved, images)


def test_every_rank_sees_its_own_images_and_together_all(monkeypatch):
    seen, tested = [], []
    for rank in range(2):
        monkeypatch.setattr("jointsvd.training.data._rank", lambda rank=rank: (rank, 2))
        data = Digits(8)
        data.batch_size = 64
        data.setup()
        data.train_set.images = torch.arange(data.num_train)[:, None]  # an image that says which it is
        data.test_set.images = torch.arange(data.num_test)[:, None]
        loader = data.train_dataloader()
        batches = [images for images, _ in loader]
        assert {len(batch) for batch in batches} == {32}
        seen += torch.cat(batches).flatten().tolist()
        tested += torch.cat([images for images, _ in data.val_dataloader()]).flatten().tolist()
    assert len(seen) == len(set(seen)) == 22 * 64
    assert sorted(tested) == list(range(360))  # none twice: else accuracy would be off
    data.batch_size = 63
    with pytest.raises(ValueError, match="multiple of 2"):
        data.train_dataloader()
