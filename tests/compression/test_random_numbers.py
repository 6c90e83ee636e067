"""Who compresses a network draws the random numbers that he would have drawn without it."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import jointsvd
from jointsvd import Budget, Group, Plan
from jointsvd.network.timing import latency

PLAN = Plan((Group(("0",), 0, 2),))


class Augmented(torch.utils.data.Dataset):
    """Images that draw from every generator."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = random.random() + np.random.random()  # noqa: NPY002
        return torch.randn(3, 8, 8) + noise


def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    return model.eval()


def loader():
    return DataLoader(Augmented(), 6, shuffle=True)


def measure(model, folder):
    jointsvd.measure_layer_times(model, torch.zeros(1, 3, 8, 8), cache=folder / "times.json")


CALLS = {
    "compress": lambda model, folder: jointsvd.compress(model, loader(), params=1.2),
    "compress_unfitted": lambda model, folder: jointsvd.compress(model, loader(), params=1.2, refit=False),
    "collect_statistics": lambda model, folder: jointsvd.collect_statistics(model, loader()),
    "recalibrate_batchnorm": lambda model, folder: jointsvd.recalibrate_batchnorm(model, loader()),
    "measure_layer_times": measure,
}


def drawn():
    """The next numbers of all generators."""
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def seed():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


@pytest.mark.parametrize("name", CALLS)
def test_no_random_number_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.setattr("jointsvd.compression.layer_times.latency", partial(latency, passes=2))
    model = network()
    seed()
    expected = drawn()
    seed()
    CALLS[name](model, tmp_path)
    assert drawn() == expected


def test_fitting_and_planning_draw_nothing():
    model = network()
    statistics = jointsvd.collect_statistics(model, loader())
    seed()
    expected = drawn()
    seed()
    jointsvd.plan_for_budget(model, statistics, Budget(params=1.2))
    jointsvd.refit(model, jointsvd.apply_plan(model, PLAN), PLAN, statistics, loader())
    assert drawn() == expected
