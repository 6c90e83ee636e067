"""Networks of many kinds, small: factored at full rank they are as before, and budgets hold."""

import copy

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd import Budget, Group, Plan, apply_plan, collect_statistics, compress, num_parameters, plan_for_budget
from jointsvd.network.layers import unfolded_shape
from jointsvd.network.surgery import check_structure
from jointsvd.training.models import build_model

SMALL = {
    "resnet18": {"channels": (8, 16, 24, 32)},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (32, 64, 96, 128), "stem_chs": 16},
    "wide_resnet50_2": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "densenet121": {"block_config": (2, 2, 2, 2), "growth_rate": 8},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "cardinality": 4, "base_width": 16},
}
WHOLE = ["vgg16_bn", "efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002", "repvgg_a0", "dla46_c"]
IMAGES = [torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1))]


@pytest.fixture(params=[*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def model(request):
    torch.manual_seed(0)
    if request.param == "vgg16_bn":  # without the 4096 features that ImageNet asks for
        network = build_model("vgg16_bn", num_classes=10, source="torchvision")
    else:
        network = timm.create_model(request.param, num_classes=10, **SMALL.get(request.param, {}))
    for norm in network.modules():  # statistics of these images, as training would have given it
        if isinstance(norm, _BatchNorm):
            norm.momentum = None
            torch.nn.init.uniform_(norm.weight, 0.5, 1)  # timm begins with residual branches that do nothing
    with torch.no_grad():
        network.train()(*IMAGES)
    return network.eval()


def test_families(model):
    statistics = collect_statistics(model, IMAGES)
    shapes = {name: unfolded_shape(model.get_submodule(name)) for name in statistics.inputs}
    whole = Plan(tuple(Group((name,), 0, min(shape)) for name, shape in shapes.items()))
    same = apply_plan(model, whole, statistics=statistics)
    with torch.no_grad():
        outputs = model(*IMAGES)
        torch.testing.assert_close(same(*IMAGES), outputs, atol=2e-3, rtol=2e-3)

    plan, choices = plan_for_budget(model, statistics, Budget(params=1.5))
    factor = num_parameters(model) / num_parameters(apply_plan(model, plan, statistics=statistics))
    step = max(choice.option.rank_cost[0] for choice in choices) / num_parameters(model)
    assert 1.5 <= factor <= 1.5 * (1.02 + 1.5 * step)
    with pytest.raises(ValueError, match="no plan reaches this budget"):
        plan_for_budget(model, statistics, Budget(params=1000))

    before = copy.deepcopy(model.state_dict())
    result = compress(model, IMAGES, params=1.2)
    check_structure(result.model, result.plan)
    with torch.no_grad():
        error = (result.model(*IMAGES) - outputs).square().mean() / outputs.var()
    assert error < 0.5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
