"""`compress` with channels that may go."""

import json

import pytest
import torch
from torch import nn

from jointsvd import (
    Group,
    Plan,
    apply_plan,
    collect_statistics,
    compress,
    load_compressed,
    num_flops,
    num_parameters,
    prepare_for_inference,
    save_compressed,
)
from jointsvd.compression.layer_times import LayerTimes
from jointsvd.compression.narrowing import narrowed_network
from jointsvd.compression.refitting import match_norms, refit
from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.onnx_runtime import onnx_session
from jointsvd.deployment.quantize import to_int8
from jointsvd.network.copying import copied
from jointsvd.network.plan import Narrowed
from jointsvd.network.surgery import build_structure

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Of its 32 inner channels 8 say all: the others are sums of these, where no ReLU comes between."""

    def __init__(self, inner=32, told=8):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm = nn.Conv2d(16, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.conv1.weight[told:] = torch.einsum(
                "ab,bcde->acde", torch.rand(inner - told, told), self.conv1.weight[:told]
            )
            self.head.weight.mul_(4)

    def forward(self, x):
        x = torch.relu(self.norm0(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(self.norm(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


PLAN = Plan((Group(("conv1",), 0, 6), Group(("conv2",), 0, 6), Group(("stem",), 0, 4)))
ALL = Narrowed("conv1", ("norm",), "conv2", tuple(range(32)))
SOME = Narrowed("conv1", ("norm",), "conv2", tuple(range(8)))


def change(network, other):
    with torch.no_grad():
        one, two = (n.eval()(IMAGES).log_softmax(1) for n in (network, other))
    return float((one.exp() * (one - two)).sum(1).mean())


def test_channels_that_others_tell_go_for_nothing():
    model = Block().eval()
    statistics = collect_statistics(model, IMAGES.split(32))
    narrower = narrowed_network(model, [SOME], statistics)
    match_norms(model, narrower, [IMAGES], narrowed=[SOME])
    assert change(model, narrower) < 1e-6
    assert num_parameters(model) - num_parameters(narrower) == 24 * (9 * 16 + 2 + 9 * 16)


def test_with_all_channels_kept_a_refit_is_as_ever():
    model = Block().eval()
    statistics = collect_statistics(model, [IMAGES])
    found = []
    for narrowed in ((), (ALL,)):
        plan = Plan(PLAN.groups, narrowed=narrowed)
        found.append(refit(model, apply_plan(model, plan, statistics=statistics), plan, statistics, [IMAGES]))
    torch.testing.assert_close(found[0](IMAGES), found[1](IMAGES))


@pytest.mark.parametrize("memory", [None, 1e-6])
def test_a_refit_finds_what_dropped_channels_said_in_those_that_stay(memory):
    model = Block().eval()
    plan = Plan((Group(("conv1",), 0, 24), Group(("conv2",), 0, 24)), narrowed=(SOME,))  # full ranks
    statistics = collect_statistics(build_structure(model, Plan(narrowed=(SOME,))), [IMAGES])
    cut = apply_plan(model, plan, statistics=statistics)  # conv2 reads 8 channels with the weights that it had for 32
    before = change(model, match_norms(model, copied(cut), [IMAGES], narrowed=[SOME]))
    refit(model, cut, plan, statistics, [IMAGES], memory=memory)
    assert change(model, cut) < 0.01 * before


@pytest.mark.parametrize("budget", [{"params": 6}, {"flops": 5}])
def test_compress_drops_channels_where_it_pays(budget, tmp_path):
    model = Block().eval()
    wide, narrow = (compress(model, IMAGES.split(32), **budget, narrow=narrow) for narrow in (False, True))
    (item,) = narrow.plan.narrowed
    assert (item.writer, item.between, item.reader) == ("conv1", ("norm",), "conv2")
    assert len(item.kept) in (8, 16)
    costs = {"params": num_parameters, "flops": lambda network: num_flops(network, (3, 12, 12))}
    for name, factor in budget.items():
        assert costs[name](model) >= factor * costs[name](narrow.model)
    assert change(model, narrow.model) < change(model, wide.model)
    weights = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sum(line["dense_parameters"] for line in narrow.report) == sum(weights)
    channels = {line["layers"][0]: line["channels"] for line in narrow.report if line["channels"]}
    assert channels == {"conv1": {"writes": [len(item.kept), 32]}, "conv2": {"reads": [len(item.kept), 32]}}
    assert not any(line["channels"] for line in wide.report)
    save_compressed(tmp_path / "net.safetensors", narrow.model, narrow.plan)
    loaded = load_compressed(tmp_path / "net.safetensors", Block())
    torch.testing.assert_close(loaded.eval()(IMAGES), narrow.model.eval()(IMAGES), rtol=0, atol=0)
    assert json.loads(narrow.plan.to_json())["settings"] == {**narrow.plan.settings}


def test_a_budget_that_only_fewer_channels_reach():
    model = Block(inner=64).eval()
    with pytest.raises(ValueError, match="no plan reaches"):
        compress(model, IMAGES.split(32), flops=40)
    result = compress(model, IMAGES.split(32), flops=40, narrow=True)
    assert num_flops(model, (3, 12, 12)) >= 40 * num_flops(result.model, (3, 12, 12))
    with pytest.raises(ValueError, match="no plan reaches"):
        compress(model, IMAGES.split(32), flops=500, narrow=True)


def test_where_no_channels_can_go_nothing_changes():
    class Mixed(Block):
        def forward(self, x):
            x = torch.relu(self.norm0(self.stem(x)))
            x = torch.relu(x + self.norm2(self.conv2(self.norm(self.conv1(x)).softmax(1))))
            return self.head(x.mean((2, 3)))

    one, other = (compress(Mixed(), IMAGES.split(32), params=3, narrow=narrow) for narrow in (False, True))
    assert one.plan == other.plan
    torch.testing.assert_close(one.model(IMAGES), other.model(IMAGES), rtol=0, atol=0)


def test_a_narrow_network_ships():
    model = Block().eval()
    small = compress(model, IMAGES.split(32), params=6, narrow=True).model.eval()
    with torch.no_grad():
        expected = small(IMAGES)
    ready = prepare_for_inference(small, IMAGES[:1]).model
    torch.testing.assert_close(ready(IMAGES), expected, atol=1e-4, rtol=1e-4)
    whole = to_onnx(small, IMAGES[:2])
    torch.testing.assert_close(torch.as_tensor(onnx_session(whole)(IMAGES)), expected, atol=1e-4, rtol=1e-4)
    rounded = torch.as_tensor(onnx_session(to_int8(whole, [IMAGES]))(IMAGES))
    assert (rounded - expected).norm() < 0.1 * expected.norm()


def test_the_dense_network_is_timed_with_all_its_channels(monkeypatch):
    model, seen = Block(inner=58).eval(), []

    def timed(network, *_, **__):
        seen.append(network.conv1.out_channels)
        names = ("stem", "conv1", "conv2", "head")
        return LayerTimes(10.0, dict.fromkeys(names, (2.5, 0.1, 0.1)))

    monkeypatch.setattr("jointsvd.compression.slim.measure_layer_times", timed)
    compress(model, IMAGES.split(32), faster=1.5, narrow=True)
    assert seen[:3] == [58, 24, 8]  # of 58, a half and a quarter, in multiples of 8


@pytest.mark.parametrize("dead", ["conv1", "norm2"])
def test_a_block_that_says_nothing(dead):
    model = Block().eval()
    with torch.no_grad():
        model.get_submodule(dead).weight.zero_()
    result = compress(model, IMAGES.split(32), params=3, narrow=True)
    assert result.model(IMAGES).isfinite().all()
