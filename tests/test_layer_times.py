"""Budgets of time."""

import json

import pytest
import torch
from torch import nn

from jointsvd import LayerTimes, collect_statistics, compress, plan_for_budget
from jointsvd.layer_times import measure_layer_times
from jointsvd.timing import Latency

IMAGES = torch.randn(16, 3, 12, 12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A device on which a layer takes 1 ms, and each rank of its factors 0.1 ms beside 0.2 ms."""
    calls = []

    def latency(module, images, **_):
        calls.append(module)
        if isinstance(module, nn.Sequential):
            return Latency(5.0, 0, 1)
        return Latency(0.2 + 0.1 * module.ranks[0] if hasattr(module, "ranks") else 1.0, 0, 1)

    monkeypatch.setattr("jointsvd.layer_times.latency", latency)
    return calls


def test_times_are_measured_once_a_shape_and_kept(model, clock, tmp_path):
    cache = tmp_path / "new" / "times.json"
    times = measure_layer_times(model, IMAGES[:1], cache=cache)
    assert times.network == 5
    assert set(times.layers) == {"0", "2", "4", "7"}
    for dense, fixed, per_rank in times.layers.values():
        assert (dense, fixed, per_rank) == pytest.approx((1, 0.2, 0.1))
    clock.clear()
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times
    assert len(clock) == 2  # one layer, whether it still takes as long, and the whole network
    cache.write_text(cache.read_text().replace("1.0,", "2.0,"))  # of a time when the device was busy
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times
    measure_layer_times(model, IMAGES[:2], cache=cache)
    assert len(json.loads(cache.read_text())) == 8  # another batch is another shape
    cache.write_text("{damaged")
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times


def test_a_layer_that_runs_twice_takes_both_times(clock, tmp_path):
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert measure_layer_times(model, IMAGES[:1], cache=tmp_path / "times.json").layers["0"][0] == 2


def test_a_budget_of_time_holds_and_dense_may_be_faster(model):
    statistics = collect_statistics(model, [IMAGES])
    layers = {"0": (1.0, 2.0, 0.1), "2": (1.0, 0.2, 0.05), "4": (1.0, 0.2, 0.05), "7": (0.1, 0.2, 0.1)}
    times = LayerTimes(3.6, layers)  # half a millisecond is no layer's
    plan, choices = plan_for_budget(model, statistics, faster=1.4, times=times)
    spent = 0.5
    for choice in choices:
        for layer in choice.option.layers:
            dense, fixed, per_rank = layers[layer.name]
            spent += fixed + per_rank * choice.rank if choice.rank else dense
    assert plan.settings["predicted_milliseconds"] == pytest.approx(spent)
    assert 3.6 / 1.4 - 0.1 <= spent <= 3.6 / 1.4
    assert {name for group in plan.groups for name in group.members} <= {"2", "4"}
    with pytest.raises(ValueError, match="no plan reaches this budget"):
        plan_for_budget(model, statistics, faster=3, times=times)
    with pytest.raises(ValueError, match="not both"):
        plan_for_budget(model, statistics, faster=2, flops=2, times=times)
    with pytest.raises(ValueError, match="needs times="):
        plan_for_budget(model, statistics, faster=2)


def test_compress_to_milliseconds(model, clock, tmp_path, monkeypatch):
    monkeypatch.setattr("jointsvd.layer_times.measure_layer_times.__kwdefaults__", {"cache": tmp_path / "times.json"})
    result = compress(model, [IMAGES], latency_ms=3.5)
    assert result.plan.settings["predicted_milliseconds"] <= 3.5
    assert result.plan.settings["faster"] == pytest.approx(5 / 3.5)


def test_measured_for_real(model, tmp_path):
    times = measure_layer_times(model, IMAGES, cache=tmp_path / "times.json")
    assert all(dense > 0 and fixed >= 0 and per_rank >= 0 for dense, fixed, per_rank in times.layers.values())
    with pytest.raises(ValueError, match="cannot run on"):
        measure_layer_times(model, IMAGES[:, :1], cache=tmp_path / "times.json")
