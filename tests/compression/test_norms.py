"""Batch norms behind compressed layers: what leaves them is what leaves the dense ones; others stay."""

import copy

import pytest
import torch
from torch import nn

from jointsvd import Group, Plan, apply_plan, collect_statistics, compress, refit
from jointsvd.compression.refitting import match_norms
from jointsvd.training.models import build_model

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ELSEWHERE = 5 + 3 * torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = build_model("resnet20", num_classes=10)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.running_mean, std=0.3)
    return network.eval()


@pytest.mark.parametrize("what", ["compress", "without refit", "refit", "match_norms"])
def test_where_nothing_is_compressed_nothing_changes(model, what):
    match what:
        case "compress":
            result = compress(model, [ELSEWHERE], params=1).model
        case "without refit":
            result = compress(model, [ELSEWHERE], params=1, refit=False).model
        case "refit":
            statistics = collect_statistics(model, [ELSEWHERE])
            result = refit(model, copy.deepcopy(model), Plan(), statistics, [ELSEWHERE])
        case _:
            result = match_norms(model, copy.deepcopy(model), [ELSEWHERE])
    with torch.no_grad():
        assert torch.equal(result(IMAGES), model(IMAGES))


def outputs_of_norms(network):
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.clone()))
    with torch.no_grad():
        network(IMAGES)
    return found


def test_what_leaves_norms_has_the_dense_moments_again(model):
    plan = Plan((Group(("layer2.0.conv1",), 0, 4), Group(("layer3.1.conv2",), 0, 6)))
    compressed = match_norms(model, apply_plan(model, plan), [IMAGES])
    wanted, found = (outputs_of_norms(copy.deepcopy(network)) for network in (model, compressed))
    for name, output in wanted.items():
        if name < "layer2" or name == "layer2.0.downsample.1":
            assert torch.equal(found[name], output)
        else:
            assert not torch.equal(found[name], output)
            for moment in (torch.mean, torch.std):
                one, other = (moment(x, (0, 2, 3)) for x in (found[name], output))
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_batches_give_nearly_what_all_images_give(model):
    plan = Plan((Group(("layer2.0.conv1",), 0, 4),))
    whole, parts = (match_norms(model, apply_plan(model, plan), IMAGES.split(size)) for size in (64, 16))
    with torch.no_grad():
        torch.testing.assert_close(parts(IMAGES), whole(IMAGES), atol=0.1, rtol=0.05)


def test_channels_that_do_not_move_stay_quiet(model):
    """As trained networks have them: weights of zero behind which the running variance has gone to zero."""
    for name in ("layer2.0.conv1", "layer2.0.conv2"):
        model.get_submodule(name).weight.data[0] = 0
        norm = model.get_submodule(name.replace("conv", "bn"))
        norm.running_mean[0], norm.running_var[0] = 0, 0
    plan = Plan((Group(("layer2.0.conv1",), 0, 3), Group(("layer2.0.conv2",), 0, 3)))
    compressed = match_norms(model, apply_plan(model, plan), [IMAGES])
    wanted, found = (outputs_of_norms(copy.deepcopy(network)) for network in (model, compressed))
    for name in ("layer2.0.bn1", "layer2.0.bn2"):
        torch.testing.assert_close(found[name][:, 0].mean(), wanted[name][:, 0].mean(), atol=1e-3, rtol=0)
        assert found[name].abs().max() < 3 * wanted[name].abs().max()
        assert (compressed.get_submodule(name).running_var >= 0).all()


def test_if_it_fails_the_network_is_what_it_was(model):
    compressed = apply_plan(model, Plan((Group(("layer2.0.conv1",), 0, 4),)))
    before = copy.deepcopy(compressed.state_dict())
    with pytest.raises(ValueError, match="NaN"):
        match_norms(model, compressed, [IMAGES, IMAGES * float("nan")])
    assert all(torch.equal(value, before[key]) for key, value in compressed.state_dict().items())
