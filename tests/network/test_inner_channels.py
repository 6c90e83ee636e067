"""Channels between layers: where they can be dropped, and the network without some of them."""

import copy
import json

import pytest
import torch
import torchvision
from torch import nn

from jointsvd import Group, Plan, apply_plan, load_compressed, num_parameters, save_compressed
from jointsvd.network.narrowing import inner_channels, narrow
from jointsvd.network.plan import Narrowed
from jointsvd.network.surgery import build_structure, check_structure
from jointsvd.training.models import build_model

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(network):
    """With norms that are not those of a new network: residual branches begin at 0 in some."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def found(network, image=IMAGE):
    return {item.writer: (item.between, item.reader, len(item.kept)) for item in inner_channels(network, image)}


def test_a_residual_block():
    inner = found(trained(build_model("resnet20", num_classes=10)))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert inner == {
        f"{block}.conv1": ((f"{block}.bn1",), f"{block}.conv2", 16 * 2 ** (int(block[5]) - 1)) for block in blocks
    }


def test_a_bottleneck():
    inner = found(trained(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1])))
    assert len(inner) == 10
    assert inner["layer1.1.conv1"] == (("layer1.1.bn1",), "layer1.1.conv2", 64)
    assert inner["layer1.1.conv2"] == (("layer1.1.bn2",), "layer1.1.conv3", 64)


def test_a_vgg():
    layers = torchvision.models.vgg.make_layers([16, "M", 24, 32, "M"], batch_norm=True)
    head = nn.Flatten(), nn.Linear(32 * 64, 40), nn.ReLU(), nn.Linear(40, 5)
    inner = found(trained(nn.Sequential(*layers, *head)))
    assert inner == {
        "0": (("1",), "4", 16),
        "4": (("5",), "7", 24),
        "12": ((), "14", 40),  # not "7", which a linear layer reads, 64 pixels at a time
    }


def test_an_inverted_residual():
    inner = found(trained(torchvision.models.MobileNetV2(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 1, 2]])))
    block = "features.2.conv"
    assert inner[f"{block}.0.0"] == ((f"{block}.0.1", f"{block}.1.0", f"{block}.1.1"), f"{block}.2", 96)


class Between(nn.Module):
    """conv1, something, conv2."""

    def __init__(self, something=None, after=None, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
        self.norm = norm or nn.Identity()
        self.something, self.after = something or (lambda x: x), after or (lambda x, y: y)

    def forward(self, x):
        x = torch.relu(self.something(self.norm(self.conv1(x))))
        return self.after(x, self.conv2(x)).mean((2, 3))


def test_what_treats_each_channel_by_itself():
    assert found(Between()) == {"conv1": ((), "conv2", 16)}
    assert found(Between(lambda x: x * x.mean((2, 3), keepdim=True))) == {"conv1": ((), "conv2", 16)}
    assert found(Between(norm=nn.Conv2d(16, 16, 3, groups=16))) == {"conv1": (("norm",), "conv2", 16)}


@pytest.mark.parametrize(
    ("why", "network"),
    [
        ("mixed", Between(lambda x: x.softmax(1))),
        ("mixed a little", Between(lambda x: x + 0.01 * x.mean(1, keepdim=True))),
        ("turned round", Between(lambda x: x.flip(1))),
        ("counted", Between(lambda x: x.reshape(len(x), 16, *x.shape[2:]))),
        ("read twice", Between(after=lambda x, y: y + x[:, :8, 1:-1, 1:-1])),
        ("read by its mean", Between(after=lambda x, y: y + x.mean())),
        ("of a norm over channels", Between(norm=nn.GroupNorm(1, 16))),
        ("of a conv in groups", Between(norm=nn.Conv2d(16, 16, 1, groups=4))),
        ("without effect", Between(after=lambda x, y: 0 * y)),
    ],
)
def test_channels_that_cannot_go(why, network):
    assert found(network) == {}, why


class Twice(Between):
    def forward(self, x):
        return super().forward(x) + super().forward(2 * x)


class Single(Between):
    """Runs in float32 alone."""

    def forward(self, x):
        return super().forward(x.float())


def test_where_nothing_can_be_tried_nothing_goes():
    assert found(Single()) == {}


def test_layers_that_are_more_than_layers_keep_their_channels():
    hooked, tied, twice = Between(), Between(), Twice()
    hooked.conv1.register_forward_hook(lambda *_: None)
    tied.other = nn.Conv2d(16, 8, 3)
    tied.other.weight = tied.conv2.weight
    assert [found(network) for network in (hooked, tied, twice)] == [{}, {}, {}]


def test_looking_changes_nothing():
    network = Between().train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    inner_channels(network, IMAGE)
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


INVERTED = nn.Sequential(
    nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24), nn.BatchNorm2d(24),
    nn.Conv2d(24, 6, 1), nn.Flatten(), nn.Linear(6 * 900, 5),
)  # fmt: skip
KEPT = (0, 3, 4, 11, 12, 20, 21, 23)
ITEM = Narrowed("0", ("1", "3", "4"), "5", KEPT)


def test_without_channels_as_with_zeros_in_their_place():
    network = trained(copy.deepcopy(INVERTED))
    narrower = build_structure(network, Plan(narrowed=(ITEM,)))
    gone = [channel for channel in range(24) if channel not in KEPT]
    network[5].weight.data[:, gone] = 0
    torch.testing.assert_close(narrower(IMAGE), network(IMAGE))
    assert (narrower[0].out_channels, narrower[3].groups, narrower[4].num_features, narrower[5].in_channels) == (8,) * 4
    assert num_parameters(network) - num_parameters(narrower) == 16 * (3 + 1 + 2 + 9 + 1 + 2 + 6)


def test_a_narrow_network_in_a_file(tmp_path):
    network = trained(copy.deepcopy(INVERTED))
    plan = Plan((Group(("5",), 0, 2),), narrowed=(ITEM,))
    narrower = apply_plan(network, plan)
    save_compressed(tmp_path / "net.safetensors", narrower, plan)
    loaded = load_compressed(tmp_path / "net.safetensors", INVERTED).eval()
    torch.testing.assert_close(loaded(IMAGE), narrower(IMAGE), rtol=0, atol=0)
    with pytest.raises(ValueError, match="0: the network does not have the 8 channels"):
        check_structure(network, Plan(narrowed=(ITEM,)))


def test_plans_say_which_channels_stay():
    plan = Plan((Group(("5",), 0, 2),), {"method": "budget"}, (ITEM,))
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["version"] == 2
    assert json.loads(Plan().to_json())["version"] == 1  # which older releases read
    for change in ({"version": 1}, {"narrowed": {}}, {"narrowed": [{"writer": "0"}]}):
        with pytest.raises(ValueError, match="not a jointsvd-plan"):
            Plan.from_json(json.dumps(json.loads(plan.to_json()) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": ()}, "whole numbers"),
        ({"kept": (0, 0.5)}, "whole numbers"),
        ({"kept": (-1, 2)}, "whole numbers"),
        ({"kept": (3, 1)}, "once and in order"),
        ({"reader": "0"}, "a writer and a reader"),
        ({"writer": ""}, "a writer and a reader"),
    ],
)
def test_what_describes_no_channels(change, message):
    with pytest.raises(ValueError, match=message):
        Narrowed(**({"writer": "0", "between": ("1",), "reader": "5", "kept": (1, 2)} | change))


@pytest.mark.parametrize(
    "item",
    [
        Narrowed("nowhere", (), "5", (0,)),
        Narrowed("0", ("1",), "7", (0,)),
        Narrowed("0", ("2",), "5", (0,)),
        Narrowed("0", ("1", "3", "4"), "5", (24,)),
    ],
)
def test_channels_that_a_network_does_not_have(item):
    with pytest.raises(ValueError, match=item.writer):
        build_structure(INVERTED, Plan(narrowed=(item,)))


def test_channels_that_are_dropped_twice():
    with pytest.raises(ValueError, match="dropped twice"):
        Plan(narrowed=(ITEM, ITEM))


def test_both_sides_of_a_layer():
    network = trained(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3), nn.Conv2d(20, 4, 3)))
    items = [Narrowed("0", (), "1", (1, 5)), Narrowed("1", (), "2", (0, 7, 19))]
    narrower = narrow(copy.deepcopy(network), items)
    assert narrower[1].weight.shape == (3, 2, 3, 3)
    torch.testing.assert_close(narrower[1].weight, network[1].weight[[0, 7, 19]][:, [1, 5]])
