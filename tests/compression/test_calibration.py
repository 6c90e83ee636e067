"""Statistics of calibration data, against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from jointsvd import Group, Plan, apply_plan
from jointsvd.compression.calibration import beside, recalibrate_batchnorm
from jointsvd.compression.refitting import refit
from jointsvd.compression.statistics import collect_statistics
from jointsvd.compression.strips import strip_products, strips
from jointsvd.decomposition.metric import objective
from jointsvd.network.layers import FactorPair, fold_u, unfold


def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1, stride=2),
        nn.Flatten(), nn.Linear(4 * 16, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
        {"kernel_size": (5, 3), "padding": (2, 0), "padding_mode": "reflect"},
        {"kernel_size": (3, 1), "padding": "same"},
        {"kernel_size": 2, "padding": "valid"},
    ],
)
def test_strips_are_what_the_vertical_factor_multiplies(conv):
    layer = nn.Conv2d(3, 4, **conv)
    pair = FactorPair(layer, 2, bias=True)
    U = torch.randn(layer.kernel_size[0] * 3, 2)
    pair.u.weight.data = fold_u(U, layer.kernel_size[0])
    x = torch.randn(2, 3, 12, 11)
    torch.testing.assert_close(strips(layer, x) @ U, pair.u(x).movedim(1, -1).reshape(-1, 2))


def test_moments_of_a_linear_layer_and_positions():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 36, 3))
    batches = [torch.randn(4, 1, 6, 6), (torch.randn(3, 1, 6, 6), torch.zeros(3))]
    statistics = collect_statistics(model, batches)
    x = torch.cat([batches[0], batches[1][0]])
    features = model[:2](x).double()
    for fold, moment in enumerate(statistics.inputs["2"]):
        part = features[fold::4]
        torch.testing.assert_close(moment, part.T @ part / len(part), atol=1e-5, rtol=1e-5)
    assert statistics.positions == {"0": (36, 36), "2": (1, 1)}
    assert statistics.num_images == 7


def test_the_weighted_error_is_the_kl_divergence_of_a_small_change():
    """For one image the Kronecker factorisation is exact."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    image = torch.randn(1, 6, dtype=torch.float64)
    statistics = collect_statistics(model, [image.repeat(20_000, 1)])
    changed = copy.deepcopy(model)
    changed[0].weight.data += 1e-3 * torch.randn(8, 6)
    W, A = (unfold(net[0].weight) for net in (model, changed))
    C, G = statistics.metric("0")
    predicted = objective([W], [C], [G], [A])
    kl = F.kl_div(changed(image).log_softmax(-1), model(image).log_softmax(-1), reduction="sum", log_target=True)
    assert predicted == pytest.approx(kl.item(), rel=0.05)


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    collect_statistics(model, [torch.randn(4, 3, 8, 8)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_batch_norm_gets_the_averages_of_the_data():
    model = network()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    batches = [torch.randn(32, 3, 8, 8) for _ in range(4)]
    assert recalibrate_batchnorm(model, batches) is model
    outputs = [model[0](batch) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.cat(outputs).mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_var, variances, atol=1e-5, rtol=1e-4)
    assert model[1].momentum == 0.1
    assert model.training


@pytest.mark.parametrize(
    ("change", "batches", "message"),
    [
        (None, [], "loader is empty"),
        (None, [torch.zeros(4, dtype=torch.int64)], "needs batches of images"),
        (None, ["image"], "needs batches of images"),
        (None, [torch.full((1, 3, 8, 8), float("nan"))], "NaN"),
        (None, [torch.zeros(1, 1, 8, 8)], "cannot run on a calibration batch"),
        (None, [torch.zeros(1, 3, 8, 8, dtype=torch.float64)], "cannot run on a calibration batch"),
        (None, [torch.zeros(1, 3, 8, 8, device="meta")], "a calibration batch is on the meta device"),
        (nn.Module.half, [torch.zeros(1, 3, 8, 8)], "needs a model in float32"),
        (lambda model: model[:4], [torch.zeros(1, 3, 9, 9)], None),
        (lambda model: nn.Sequential(*model, nn.Linear(5, 1)), [torch.zeros(1, 3, 8, 8)], "two or more logits"),
    ],
)
def test_bad_input(change, batches, message):
    model = change(network()) if change else network()
    if message is None:  # any tensor whose last dimension is longer than one will do
        assert collect_statistics(model, batches).num_images == 1
        return
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        collect_statistics(model, batches)
    if message != "two or more logits":
        with pytest.raises(ValueError, match=message):
            recalibrate_batchnorm(model, batches)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="the model is on the meta device"):
        collect_statistics(network().to("meta"), [torch.zeros(1, 3, 8, 8)])


def test_batches_come_to_the_model(monkeypatch):
    """What `beside` does to a batch is done before the model sees it, wherever images run: here, another dtype."""
    monkeypatch.setattr("jointsvd.compression.calibration.beside", lambda model, images: images.double())
    model, batches = network().double(), [torch.randn(4, 3, 8, 8), (torch.randn(2, 3, 8, 8), None)]
    statistics = collect_statistics(model, batches)
    recalibrate_batchnorm(model, batches)
    plan = Plan((Group(("0",), 0, 2),))
    refit(model, apply_plan(model, plan), plan, statistics, batches)
    assert statistics.num_images == 6


def test_beside_a_model_on_a_gpu():
    """In PyTorch's make-believe, which needs no GPU, and where a CPU batch stops such a model too."""
    with FakeTensorMode():
        model, images = nn.Linear(3, 2, device="cuda"), torch.zeros(4, 3)
        with pytest.raises(RuntimeError, match="same device"):
            model(images)
        assert model(beside(model, images)).device == beside(model, images).device == torch.device("cuda", 0)


def test_gradients_have_the_second_moment_of_the_exact_fisher_information():
    """Of each class, weighted by its probability, in the mean over many repeats of the same images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    images = torch.randn(3, 5, dtype=torch.float64)
    hidden = model[0](images).requires_grad_()
    log_probs = model[2](model[1](hidden)).log_softmax(-1)
    exact = torch.zeros(7, 7, dtype=torch.float64)
    for label in range(4):
        (g,) = torch.autograd.grad(log_probs[:, label].sum(), hidden, retain_graph=True)
        exact += (log_probs[:, label].detach().exp()[:, None] * g).T @ g / 3
    found = collect_statistics(model, [images.repeat(4000, 1)]).outputs["0"].mean(0)
    torch.testing.assert_close(found, exact, atol=float(0.05 * exact.diagonal().mean()), rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"padding": 0}, {"padding_mode": "circular"}, {"kernel_size": (5, 3)}])
@pytest.mark.parametrize("options_of_rows", [{}, {"stride": (2, 1)}, {"dilation": 2}])
def test_products_of_strips_are_those_of_the_strips(options, options_of_rows):
    """Where strips begin a row below each other, most of the products is computed once."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, **{"kernel_size": 3, "padding": 1} | options | options_of_rows)
    x, y = (torch.randn(5, 3, 13, 6, dtype=torch.float64) for _ in range(2))
    a, b = strips(layer, x), strips(layer, y)
    num, own, cross = strip_products(layer, x, y)
    assert num == len(a)
    torch.testing.assert_close(own, a.T @ a)
    torch.testing.assert_close(cross, a.T @ b)
