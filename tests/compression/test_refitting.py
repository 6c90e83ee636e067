"""Factors fitted behind compressed layers: against least squares, and what stays as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jointsvd import Group, Plan, apply_plan, collect_statistics, recalibrate_batchnorm
from jointsvd.compression.refitting import match_norms, refit
from jointsvd.deployment.inference import multiplied_out
from jointsvd.network.layers import unfold
from jointsvd.network.surgery import check_structure
from jointsvd.training.models import build_model

IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES[:20], None), (IMAGES[20:], None)]


def network(**conv):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, **conv), nn.Flatten(), nn.LazyLinear(5)
    ).eval()  # fmt: skip


def space(weight):
    """The projection to what the columns of U, or the rows of V, span."""
    W = unfold(weight.detach().double())
    basis = torch.linalg.qr(W if len(W) > W.shape[1] else W.T).Q
    return basis @ basis.T


def refitted(model, plan, batches=BATCHES):
    statistics = collect_statistics(model, batches)
    compressed = apply_plan(model, plan, statistics=statistics)
    before = copy.deepcopy(compressed)
    return before, refit(model, compressed, plan, statistics, batches)


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (2, 1), "bias": False},
        {"kernel_size": (1, 3), "stride": 2, "padding": (0, 1), "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 1},
    ],
)
def test_at_full_rank_the_second_factor_is_the_least_squares_fit(conv):
    """No other V brings the outputs behind a bad first layer closer to the dense ones."""
    model = network(**conv)
    images = torch.randn(384, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model(images[:1])
    weight = model[2].weight
    rank = min(weight[0, ..., 0].numel(), weight[:, 0, 0].numel())
    _, compressed = refitted(model, Plan((Group(("0",), 0, 2), Group(("2",), 0, rank))), [images])
    with torch.no_grad():
        wanted, hidden = model[:3](images), compressed[2].u(compressed[:2](images))
    best = copy.deepcopy(compressed[2].v)
    optimizer = torch.optim.LBFGS(best.parameters(), max_iter=300, line_search_fn="strong_wolfe")
    optimizer.step(lambda: (optimizer.zero_grad(), loss := F.mse_loss(best(hidden), wanted), loss.backward())[1])
    reached, least = (F.mse_loss(layer(hidden), wanted).item() for layer in (compressed[2].v, best))
    assert reached <= least * 1.05  # drawn towards what it was, the less the more images


def test_outputs_come_closer_and_the_dense_network_stays():
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10).eval()
    recalibrate_batchnorm(model, [IMAGES])
    saved = copy.deepcopy(model.state_dict())
    stage = [f"layer1.{i}.conv{j}" for i in range(3) for j in (1, 2)]
    alone = [Group((f"layer{s}.{i}.conv{j}",), 0, 12) for s in (2, 3) for i in range(1, 3) for j in (1, 2)]
    plan = Plan((Group(tuple(stage[:3]), 12, 0), Group(tuple(stage[3:]), 0, 12), *alone))
    before, after = refitted(model, plan)
    check_structure(after, plan)
    with torch.no_grad():
        wanted = model(IMAGES)
        errors = [F.mse_loss(net(IMAGES), wanted) for net in (recalibrate_batchnorm(before, BATCHES), after)]
    assert errors[1] < 0.7 * errors[0]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    for name, shared, own in (("layer1.0.conv2", "u", "v"), ("layer1.2.conv2", "v", "u")):
        layers = [net.get_submodule(name) for net in (before, after)]
        one, other = (space(layer.get_submodule(shared).weight) for layer in layers)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)  # the shared factor spans what it did
        assert not torch.equal(*(layer.get_submodule(own).weight for layer in layers))


def test_batch_norms_are_corrected_on_the_way():
    model = build_model("resnet20", num_classes=10).eval()
    recalibrate_batchnorm(model, [IMAGES])
    before, compressed = refitted(model, Plan((Group(("layer1.0.conv1",), 0, 4),)))
    assert not compressed.training
    one, other = (net.get_submodule("layer1.0.bn1") for net in (before, compressed))
    assert not torch.equal(one.running_var, other.running_var)
    expected = match_norms(model, copy.deepcopy(compressed), [IMAGES])
    torch.testing.assert_close(other.running_var, expected.layer1[0].bn1.running_var)


def test_a_fit_that_does_not_help_other_images_is_not_kept():
    """12 images of noise cannot tell how 300 inputs are to be put right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 10)).eval()
    few, fresh = torch.randn(12, 20), torch.randn(2000, 20)
    statistics, plan = collect_statistics(model, [few]), Plan((Group(("0",), 0, 6), Group(("2",), 0, 4)))
    compressed = apply_plan(model, plan, statistics=statistics)
    before = F.mse_loss(compressed(fresh), model(fresh)).item()
    after = F.mse_loss(refit(model, compressed, plan, statistics, [few])(fresh), model(fresh)).item()
    assert after < 1.05 * before


def test_a_layer_that_runs_twice_keeps_its_factors():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.conv(self.conv(x).relu()).mean((2, 3)))

    before, after = refitted(Twice().eval(), Plan((Group(("conv",), 0, 2), Group(("head",), 0, 2))))
    torch.testing.assert_close(multiplied_out(before.conv).weight, multiplied_out(after.conv).weight)
    assert not torch.equal(before.head.v.weight, after.head.v.weight)


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "empty"), ([IMAGES * float("nan")], "NaN"), ([IMAGES[:, :2]], "cannot run"), ([torch.arange(3)], "images")],
)
def test_bad_input(batches, message):
    model, plan = build_model("resnet20", num_classes=10).eval(), Plan((Group(("layer1.0.conv1",), 0, 4),))
    statistics = collect_statistics(model, [IMAGES])
    compressed = apply_plan(model, plan, statistics=statistics)
    with pytest.raises(ValueError, match=message):
        refit(model, compressed, plan, statistics, batches)
    with pytest.raises(ValueError, match="FactorPair"):
        refit(model, model, plan, statistics, [IMAGES])


def test_images_that_affect_each_other_are_refused():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x - x.mean(0) * x.square().sum()).mean((2, 3))

    with pytest.raises(ValueError, match="affect each other"):
        refitted(Centred(), Plan((Group(("conv",), 0, 2),)))


def test_a_linear_layer_on_images_with_channels_last():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up, self.head = nn.Conv2d(3, 8, 3, stride=3), nn.Linear(8, 12), nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.up(self.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))

    model = Mixer().eval()
    statistics = collect_statistics(model, BATCHES)
    assert statistics.outputs["up"].shape == (4, 12, 12)
    assert statistics.positions["up"] == (16, 16)
    before, after = refitted(model, Plan((Group(("stem",), 0, 3), Group(("up",), 0, 5))))
    with torch.no_grad():
        wanted = model.up(model.stem(IMAGES).movedim(1, -1))
        errors = [F.mse_loss(net.up(net.stem(IMAGES).movedim(1, -1)), wanted) for net in (before, after)]
    assert errors[1] < errors[0]
