"""Budgets of time."""

import json
import time
from functools import partial

import pytest
import torch
from torch import nn

from jointsvd import Budget, LayerTimes, apply_plan, collect_statistics, compress, plan_for_budget
from jointsvd.compression.layer_times import _times, measure_layer_times, paired_times
from jointsvd.network.timing import Latency, latency
from jointsvd.training.models import build_model

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A device on which a layer takes 1 ms, each rank of its factors 0.1 ms beside 0.2 ms, and the network 5 ms."""
    calls = []

    def times(network, images, names):
        calls.append(network)
        layers = map(network.get_submodule, names)
        spent = [0.2 + 0.1 * layer.ranks[0] if hasattr(layer, "ranks") else 1.0 for layer in layers]
        return 5.0, dict(zip(names, spent, strict=True))

    monkeypatch.setattr("jointsvd.compression.layer_times._times", times)
    monkeypatch.setattr("jointsvd.compression.layer_times.latency", lambda *_, **__: Latency(5.0, 0, 1))  # paired_times
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
    assert len(clock) == 1  # the dense network, whether it still takes as long
    cache.write_text(cache.read_text().replace("1.0,", "2.0,"))  # of a time when the device was busy
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times
    measure_layer_times(model, IMAGES[:2], cache=cache)
    assert len(json.loads(cache.read_text())) == 8  # another batch is another shape
    cache.write_text("{damaged")
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times


@pytest.mark.parametrize(
    "line",
    [None, "fast", 1.0, {}, [], [1.0, 0.2], [1.0, 0.2, 0.1, 0.0], [1.0, None, 0.1], [1.0, "0.2", 0.1], [True, 0.2, 0.1],
     [float("nan"), 0.2, 0.1], [float("inf"), 0.2, 0.1], [1.0, -0.2, 0.1], [0.0, 0.2, 0.1]],
)  # fmt: skip
def test_what_cannot_be_a_time_was_not_measured(model, clock, tmp_path, line):
    cache = tmp_path / "times.json"
    times = measure_layer_times(model, IMAGES[:1], cache=cache)
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps({**known, next(iter(known)): line}))
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times
    assert json.loads(cache.read_text()) == known
    cache.write_text(json.dumps([line]))
    assert measure_layer_times(model, IMAGES[:1], cache=cache) == times


def spend(seconds):
    """Seconds of this thread, which sleeping takes none of."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_layers_are_timed_where_they_run_and_a_layer_that_runs_twice_takes_both_times(monkeypatch, tmp_path):
    first, twice = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(first, twice, nn.ReLU(), twice)
    for module, seconds in zip(model, (0.01, 0.02, 0.03), strict=False):
        module.register_forward_hook(lambda *_, seconds=seconds: spend(seconds))
    monkeypatch.setattr("jointsvd.compression.layer_times.latency", partial(latency, passes=11))
    whole, spent = _times(model.eval(), torch.randn(2, 4), ["0", "1"])
    assert spent == {"0": pytest.approx(10, rel=0.3), "1": pytest.approx(70, rel=0.3)}
    assert whole == pytest.approx(80, rel=0.3)


def test_times_of_another_network_are_taken_at_its_own_pace(model, clock, tmp_path, monkeypatch):
    """What is known was measured a little slower: the dense layers of this network say by how much."""
    cache = tmp_path / "times.json"
    measure_layer_times(model, IMAGES[:1], cache=cache)
    monkeypatch.setattr(
        "jointsvd.compression.layer_times._times", lambda _, images, names: (4.5, dict.fromkeys(names, 0.9))
    )
    times = measure_layer_times(model, IMAGES[:1], cache=cache)
    assert times.network == 4.5
    for layer in times.layers.values():
        assert layer == pytest.approx([0.9 * share for share in (1, 0.2, 0.1)])


def test_a_budget_of_time_holds_and_dense_may_be_faster(model):
    statistics = collect_statistics(model, [IMAGES])
    layers = {"0": (1.0, 2.0, 0.1), "2": (1.0, 0.2, 0.05), "4": (1.0, 0.2, 0.05), "7": (0.1, 0.2, 0.1)}
    times = LayerTimes(3.6, layers)  # half a millisecond is no layer's
    plan, choices = plan_for_budget(model, statistics, Budget(faster=1.4), times=times)
    spent = 0.5
    for choice in choices:
        for layer in choice.option.layers:
            dense, fixed, per_rank = layers[layer.name]
            spent += fixed + per_rank * choice.rank if choice.rank else dense
    assert plan.settings["predicted_milliseconds"] == pytest.approx(spent)
    assert 3.6 / 1.4 - 0.1 <= spent <= 3.6 / 1.4
    assert {name for group in plan.groups for name in group.members} <= {"2", "4"}
    with pytest.raises(ValueError, match="no plan reaches this budget"):
        plan_for_budget(model, statistics, Budget(faster=3), times=times)
    with pytest.raises(ValueError, match="not both"):
        plan_for_budget(model, statistics, Budget(flops=2), times=times)
    with pytest.raises(ValueError, match="needs times="):
        plan_for_budget(model, statistics, Budget(faster=2))


def test_compress_to_milliseconds(model, clock, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jointsvd.compression.layer_times.measure_layer_times.__kwdefaults__", {"cache": tmp_path / "times.json"}
    )
    result = compress(model, [IMAGES], latency_ms=3.5)
    assert result.plan.settings["predicted_milliseconds"] <= 3.5
    assert result.plan.settings["faster"] == pytest.approx(5 / 3.5)
    assert 0 < result.plan.settings["measured_milliseconds"] != result.plan.settings["predicted_milliseconds"]


@pytest.mark.parametrize("engine", ["onnx", "int8"])
def test_layers_are_timed_in_onnx_runtime(model, monkeypatch, tmp_path, engine):
    monkeypatch.setattr("jointsvd.compression.layer_times._SHARES", (0.1, 1.0))
    cache = tmp_path / "times.json"
    times = measure_layer_times(model, IMAGES[:1], engine, 8, cache=cache)
    assert set(times.layers) == {"0", "2", "4", "7"}
    assert all(dense > 0 and fixed >= 0 and per_rank >= 0 for dense, fixed, per_rank in times.layers.values())
    assert sum(dense for dense, *_ in times.layers.values()) == pytest.approx(times.network, rel=0.25)
    assert all(key.startswith(f"{engine}, multiples of 8, ") for key in json.loads(cache.read_text()))


def test_compress_says_how_fast_it_is_in_its_engine(model, clock, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jointsvd.compression.layer_times.measure_layer_times.__kwdefaults__", {"cache": tmp_path / "times.json"}
    )
    settings = compress(model, [IMAGES], faster=1.2, engine="torch").plan.settings
    assert settings["engine"] == "torch"
    assert settings["measured_faster"] == 1  # by this clock
    with pytest.raises(ValueError, match="engine must be one of"):
        compress(model, [IMAGES], faster=1.2, engine="tensorrt")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "faster"), [("torch", 2), ("onnx", 3), ("int8", 2)])
def test_a_planned_speed_is_kept_within_15_percent(engine, faster, tmp_path):
    torch.manual_seed(0)
    dense = build_model("resnet34", num_classes=10, in_channels=1).eval()
    images = torch.rand(64, 1, 28, 28)
    times = measure_layer_times(dense, images[:1], engine, 16, cache=tmp_path / "times.json")
    statistics = collect_statistics(dense, [images])
    plan, _ = plan_for_budget(dense, statistics, Budget(faster=faster), times=times, rank_multiple=16)
    before, after = paired_times(dense, apply_plan(dense, plan, statistics=statistics), images[:1], engine)
    assert before / after == pytest.approx(times.network / plan.settings["predicted_milliseconds"], rel=0.15)


def test_measured_for_real(model, monkeypatch, tmp_path):
    monkeypatch.setattr("jointsvd.compression.layer_times.latency", partial(latency, passes=3))
    times = measure_layer_times(model, IMAGES, cache=tmp_path / "times.json")
    assert all(dense > 0 and fixed >= 0 and per_rank >= 0 for dense, fixed, per_rank in times.layers.values())
    with pytest.raises(ValueError, match="cannot run on"):
        measure_layer_times(model, IMAGES[:, :1], cache=tmp_path / "times.json")
    with pytest.raises(ValueError, match="no ungrouped Conv2d"):
        measure_layer_times(nn.ReLU(), IMAGES, cache=tmp_path / "times.json")
