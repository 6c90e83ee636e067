"""Layers timed inside ONNX Runtime."""

import pytest
import torch
from torch import nn

from jointsvd import Group, Plan, build_structure
from jointsvd.deployment.profiled import _of_events, profiled
from jointsvd.training.models import build_model

IMAGES = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def event(name, ts, dur, cat="Node"):
    return {"name": name, "ts": ts, "dur": dur, "cat": cat}


def test_what_no_layer_owns_counts_with_the_one_before_and_the_slower_passes_do_not_count():
    passes = [(1000, 1), (2000, 1), (3000, 9)]  # the third was disturbed
    events = [event("session_initialization", 0, 900, "Session")]
    for start, slower in passes:
        events.append(event("model_run", start, 110 * slower, "Session"))
        names = ("reorder", "a_nchwc", "add_3", "relu_token_7", "b")
        events += [event(f"{name}_kernel_time", start + 10 * i, 20 * slower) for i, name in enumerate(names, start=1)]
    times = _of_events(events, {"x": "", "a": "first", "relu": "second", "b": "second"}, whole=0.1)
    assert times == {"first": pytest.approx(0.04), "second": pytest.approx(0.04)}
    times = _of_events(events, {"x": "", "a": "first", "relu": "second", "b": "second"}, whole=0.05)
    assert times == {"first": pytest.approx(0.02), "second": pytest.approx(0.02)}


@pytest.mark.parametrize("engine", ["onnx", "int8"])
@pytest.mark.parametrize("rank", [0, 4])
def test_every_layer_of_a_network_has_a_time(engine, rank):
    torch.manual_seed(0)
    network = build_model("resnet20", num_classes=10, in_channels=1).eval()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if rank:
        network = build_structure(network, Plan(tuple(Group((name,), 0, rank) for name in names if name != "conv1")))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    run, times = profiled(network.eval(), IMAGES, names, engine)
    assert run(IMAGES).shape == (1, 10)
    whole, spent = times()
    assert set(spent) == set(names)
    assert sum(spent.values()) == pytest.approx(whole, rel=0.1)
    assert sum(time > 0 for time in spent.values()) > 0.8 * len(names)
