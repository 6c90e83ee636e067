"""Calibration images that do not suit, each kind of them on a network trained on digits."""

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jointsvd import collect_statistics, compress
from jointsvd.compression.suitability import problems
from jointsvd.training.datasets import Digits


@pytest.fixture(scope="module")
def trained():
    """A small network after a few epochs, and its normalised training images in the order of their classes."""
    torch.manual_seed(0)
    data = Digits(8)
    data.setup()
    images, labels = data.normalize(data.train_set.images), data.train_set.labels
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.95
    return model, images[labels.argsort()], data


def found(model, images):
    return problems(model, [images], collect_statistics(model, [images]))


def test_images_that_suit(trained):
    model, images, _ = trained
    assert not found(model, images[torch.randperm(len(images))[:256]])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("in the order of folders", r"finds 1 of its 10 classes.*Shuffle them"),
        ("not normalised", r"at the first batch norm.*normalised as the network expects"),
        ("not divided by 255", r"standard deviations off"),
        ("noise", r"not noise"),
        ("few", r"11 calibration images show few of the 512 input directions of 7.*give more images"),
    ],
)
def test_images_that_do_not(trained, kind, message, caplog):
    model, images, data = trained
    pixels = data.train_set.images[:128].float()
    chosen = {
        "in the order of folders": images[:128],
        "not normalised": pixels / 255,
        "not divided by 255": pixels,
        "noise": torch.randn(128, 1, 8, 8),
        "few": images[torch.randperm(len(images))[:12]],
    }[kind]
    with caplog.at_level(logging.WARNING):
        compress(model, [chosen], params=1.5)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any(re.search(message, warning) for warning in warnings), warnings


def test_a_network_without_norms():
    model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
    assert not found(model, torch.randn(64, 8))
