"""Networks made ready to run compute what they did."""

import copy

import pytest
import timm
import torch
from torch import nn

from jointsvd import Group, Plan, build_structure, compress, plan_compression, prepare_for_inference
from jointsvd.deployment.inference import multiplied_out
from jointsvd.network.layers import FactorLayer, FactorPair
from jointsvd.network.timing import Latency
from jointsvd.training.models import build_model

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained_like(network):
    """With batch norms that do something."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    with torch.no_grad():
        network.train()(IMAGES)
    return network.eval()


def network(method, name="resnet20"):
    torch.manual_seed(0)
    dense = build_model(name, num_classes=10)
    layers = ["layer?.*.conv?"] if name == "resnet20" else None
    plan = plan_compression(dense, method, rank_rate=0.2, **({"layers": layers} if layers else {}))
    return trained_like(build_structure(dense, plan))


def same(one, other):
    with torch.no_grad():
        expected, found = one(IMAGES), other(IMAGES)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("method", ["svd", "rjsvd1", "ljsvd", "bijsvd", "tucker2", "nc_ctd"])
@pytest.mark.parametrize("faster", ["factors", "dense"])
def test_every_method_computes_the_same_in_either_form(method, faster, monkeypatch):
    """The clock decides; here it is told."""
    model = network(method)

    def clock(module, images, passes):
        return Latency(float(isinstance(module, FactorLayer) == (faster == "dense")), 0.0, 1)

    monkeypatch.setattr("jointsvd.deployment.inference.latency", clock)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_for_inference(model, IMAGES)
    same(model, prepared.model)
    assert {line["choice"] for line in prepared.report} == {faster}
    factored = [module for module in prepared.model.modules() if isinstance(module, FactorLayer)]
    assert bool(factored) == (faster == "factors")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())
    shared_last = {"rjsvd1": 18, "nc_ctd": 16}.get(method, 0)
    assert norms == (shared_last if faster == "factors" else 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shared_factors_stay_one_and_two_branches_become_one_pair(monkeypatch):
    monkeypatch.setattr(
        "jointsvd.deployment.inference.latency", lambda module, *_, **__: Latency(type(module) is nn.Conv2d, 0, 1)
    )
    prepared = prepare_for_inference(network("ljsvd"), IMAGES).model
    assert len({prepared.layer1[i].conv1.u.weight.data_ptr() for i in range(3)}) == 1
    model = network("bijsvd")
    pair = prepare_for_inference(model, IMAGES).model.layer1[0].conv1
    assert isinstance(pair, FactorPair)
    assert pair.ranks == (sum(model.layer1[0].conv1.ranks),)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect", bias=False),
        nn.Linear(16, 7),
    ],
)
def test_a_pair_multiplied_out(layer):
    pair = FactorPair(layer, 3, bias=layer.bias is not None)
    torch.testing.assert_close(multiplied_out(pair)(IMAGES), pair(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv3_small_050"])
def test_networks_at_a_budget(name):
    torch.manual_seed(0)
    dense = build_model("resnet20", num_classes=10) if name == "resnet20" else timm.create_model(name, num_classes=10)
    dense = trained_like(dense)
    small = compress(dense, [torch.randn(16, 3, 32, 32)], params=1.3, refit=False).model
    prepared = prepare_for_inference(small, IMAGES, passes=3)
    same(small, prepared.model)
    assert set(prepared.milliseconds) == {"contiguous", "channels_last"}
    assert all(line[f"{line['choice']} ms"] == min(line["factors ms"], line["dense ms"]) for line in prepared.report)


def test_a_network_that_cannot_be_traced_keeps_its_norms():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > -1e9 else x

    model = build_structure(Branching(), Plan((Group(("conv",), 0, 2),))).eval()
    prepared = prepare_for_inference(model, IMAGES, passes=3)
    same(model, prepared.model)
    assert isinstance(prepared.model.norm, nn.BatchNorm2d)


def test_bad_input():
    model = network("ljsvd")
    with pytest.raises(ValueError, match="example_input on meta"):
        prepare_for_inference(model, IMAGES.to("meta"))
    with pytest.raises(ValueError, match="cannot run on"):
        prepare_for_inference(model, IMAGES[:, :1])


def test_norms_are_folded_only_where_that_changes_nothing():
    class Tricky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)  # the weight is read again

    model = trained_like(Tricky())
    prepared = prepare_for_inference(model, IMAGES, passes=3)
    same(model, prepared.model)
    assert isinstance(prepared.model.norm, nn.BatchNorm2d)


def test_the_report_names_layers_not_their_branches():
    prepared = prepare_for_inference(network("bijsvd"), IMAGES, passes=3)
    assert all(line["layer"].count(".") == 2 for line in prepared.report)


def test_the_callers_random_numbers_stay():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    model = build_structure(Noisy(nn.Conv2d(3, 4, 3)), Plan((Group(("0",), 0, 2),))).eval()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    prepare_for_inference(model, IMAGES, passes=3)
    assert torch.equal(torch.rand(1), expected)
