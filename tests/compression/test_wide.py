"""Linear layers of many inputs, in the directions that few images span, against the same with dense moments."""

import pytest
import torch
from torch import nn

from jointsvd import Budget, collect_statistics, compress, plan_for_budget
from jointsvd.compression.sources import shaping
from jointsvd.compression.task import Task
from jointsvd.decomposition.spanned import Spanned

IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network():
    """Of the shape of a VGG: most of its weights in the first linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 144, 24), nn.ReLU(), nn.Linear(24, 10)
    ).eval()  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Layers of more than 200 inputs count as wide."""
    monkeypatch.setattr("jointsvd.compression.moments._WIDE", 200)


def test_moments_are_kept_in_the_span_of_the_images(few, monkeypatch):
    spanned = collect_statistics(network(), IMAGES.split(10))
    monkeypatch.setattr("jointsvd.compression.moments._WIDE", 10**9)
    dense = collect_statistics(network(), IMAGES.split(10))
    assert isinstance(spanned.inputs["3"], Spanned)
    assert spanned.inputs["3"].basis.shape == (864, 32)
    for fold in range(4):
        one, other = (found.measured("3", fold)[0] for found in (spanned, dense))
        torch.testing.assert_close(one.dense(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("refit", [False, True])
def test_a_conv_of_many_outputs_at_few_positions(few, monkeypatch, refit):
    """As the first of VGG's classifier is in timm."""
    torch.manual_seed(0)
    head = nn.Conv2d(8, 320, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 5)
    model, results = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), *head).eval(), []
    assert isinstance(collect_statistics(model, [IMAGES]).outputs["2"], Spanned)
    for limit in (200, 10**9):
        monkeypatch.setattr("jointsvd.compression.moments._WIDE", limit)
        results.append(compress(model, [IMAGES], params=3, refit=refit))
    assert results[0].plan.groups == results[1].plan.groups
    torch.testing.assert_close(results[0].model(IMAGES), results[1].model(IMAGES), atol=1e-3, rtol=1e-3)


def test_many_vectors_make_a_dense_moment(few):
    many = collect_statistics(network(), torch.randn(240, 3, 12, 12).split(60))
    assert many.inputs["3"].shape == (4, 864, 864)
    assert isinstance(many.inputs["3"], torch.Tensor)


@pytest.mark.parametrize("params", [1.5, 4])
def test_plan_and_network_are_those_of_the_dense_moments(few, monkeypatch, params):
    results = []
    for limit in (200, 10**9):
        monkeypatch.setattr("jointsvd.compression.moments._WIDE", limit)
        results.append(compress(network(), list(IMAGES.split(10)), params=params))
    one, other = results
    assert one.plan.groups == other.plan.groups
    assert any("3" in group.members for group in one.plan.groups)
    for line, expected in zip(one.report, other.report, strict=True):
        for key, value in line.items():
            assert value == (pytest.approx(expected[key], rel=1e-3, abs=1e-9) if "error" in key else expected[key])
    torch.testing.assert_close(one.model(IMAGES), other.model(IMAGES), atol=1e-3, rtol=1e-3)


def test_the_plan_counts_all_inputs(few):
    statistics = collect_statistics(network(), shaping([IMAGES], Task(), judging=False))
    _, choices = plan_for_budget(network(), statistics, Budget(params=3))
    (choice,) = [choice for choice in choices if choice.option.layers[0].name == "3"]
    assert choice.rank
    assert choice.cost[0] == choice.rank * (864 + 24)
    assert choice.option.dense_cost[0] == 864 * 24
