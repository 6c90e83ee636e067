"""Structure, weights and sharing of compressed networks."""

import copy
import re

import numpy as np
import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from jointsvd import Group, Plan, TuckerGroup, build_structure, find_groups, num_flops, num_parameters
from jointsvd.network.layers import fold_u, fold_v, unfold
from jointsvd.network.methods import WITH_RANK_RATE
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import apply_plan
from jointsvd.training.models import build_model


class Blocks(nn.Module):
    """Three convs of one shape in the names of a ResNet's second stage."""

    def __init__(self, **conv):
        super().__init__()
        self.layer2 = nn.Sequential(*(nn.ModuleDict({"conv1": nn.Conv2d(8, 8, **conv)}) for _ in range(3)))

    def forward(self, x):
        for block in self.layer2:
            x = block["conv1"](x)
        return x


MATRIX_METHODS = [method for method in WITH_RANK_RATE if method not in ("tucker2", "nc_ctd")]
NAMES = tuple(f"layer2.{i}.conv1" for i in range(3))


def test_unfold_is_the_papers_and_folds_back():
    weight = torch.randn(5, 4, 3, 2)
    W = unfold(weight)
    assert W.shape == (3 * 4, 2 * 5)
    assert W[2 * 4 + 1, 1 * 5 + 3] == weight[3, 1, 2, 1]
    U, V = torch.randn(12, 6), torch.randn(6, 10)
    product = torch.einsum("rihx,orxw->oihw", fold_u(U, 3), fold_v(V, 2))
    torch.testing.assert_close(unfold(product), U @ V)


@pytest.mark.parametrize("shared", ["left", "right", "both", "tucker", "coupled"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": (3, 5), "padding": (2, 2), "dilation": (2, 1), "padding_mode": "reflect"},
    ],
    ids=["1x1", "3x3", "1x3", "3x5-dilated-reflect"],
)
def test_full_rank_equals_the_dense_convs(conv, stride, shared):
    model = Blocks(**conv, stride=stride, bias=True).double()
    rows, cols = unfold(model.layer2[0]["conv1"].weight).shape
    group = {
        "left": Group(NAMES, rows, 0),
        "right": Group(NAMES, 0, min(3 * rows, cols)),
        "both": Group(NAMES, rows, 2),
        "tucker": TuckerGroup(NAMES, (8, 8)),
        "coupled": TuckerGroup(NAMES, (8, 8), (3, 2)),
    }[shared]
    compressed = apply_plan(model, Plan((group,)))
    x = torch.randn(2, 8, 33, 35, dtype=torch.float64)
    torch.testing.assert_close(compressed(x), model(x))


def test_one_member_and_string_padding():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding="same")).double()
    compressed = apply_plan(model, Plan((Group(("0",), right_rank=9),)))
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(compressed(x), model(x))


@pytest.mark.parametrize("method", MATRIX_METHODS)
def test_shared_factors_are_one_parameter_and_own_ones_are_not(method):
    model = build_model("resnet34", num_classes=10)
    plan = plan_compression(model, method, rank_rate=0.1)
    compressed = build_structure(model, plan)
    assert len(plan.groups) == {"svd": 26, "rjsvd1": 6}.get(method, 9)
    for group in plan.groups:
        layers = [compressed.get_submodule(name) for name in group.members]
        factors = {"u": [], "v": []}
        for layer in layers:
            branches = [layer.right, layer.left] if group.left_rank and group.right_rank else [layer]
            for name in factors:
                factors[name] += [getattr(branch, name).weight for branch in branches]
        num = len(layers)
        shared_u = num if group.left_rank else 0
        shared_v = num if group.right_rank else 0
        assert len({id(u) for u in factors["u"]}) == len(factors["u"]) - max(shared_u - 1, 0)
        assert len({id(v) for v in factors["v"]}) == len(factors["v"]) - max(shared_v - 1, 0)
    # the state dict repeats a shared factor, the count must not: dense parameters go, ranks times sides come
    expected = num_parameters(model)
    for group in plan.groups:
        shapes = [unfold(model.get_submodule(name).weight).shape for name in group.members]
        expected -= sum(rows * cols for rows, cols in shapes)
        expected += group.left_rank * (shapes[0][0] + sum(cols for _, cols in shapes))
        expected += group.right_rank * (shapes[0][1] + sum(rows for rows, _ in shapes))
    assert num_parameters(compressed) == expected


@pytest.mark.parametrize("method", ["tucker2", "nc_ctd"])
def test_tucker_layers_share_one_whole_tucker_or_nothing(method):
    model = build_model("resnet34", num_classes=10)
    plan = plan_compression(model, method, rank_rate=0.1)
    compressed = build_structure(model, plan)
    expected = num_parameters(model)

    def cost(conv, ranks):
        return conv.in_channels * ranks[0] + 9 * ranks[0] * ranks[1] + ranks[1] * conv.out_channels

    for group in plan.groups:
        convs = [model.get_submodule(name) for name in group.members]
        expected += sum(cost(conv, group.own) - conv.weight.numel() for conv in convs)
        expected += cost(convs[0], group.shared) if group.shared else 0
        layers = [compressed.get_submodule(name) for name in group.members]
        for part in ("first", "core", "last"):
            own = {id(getattr(layer.own if group.shared else layer, part).weight) for layer in layers}
            assert len(own) == len(layers)
            assert not group.shared or len({id(getattr(layer.shared, part).weight) for layer in layers}) == 1
    assert {bool(group.shared) for group in plan.groups} == ({False} if method == "tucker2" else {True, False})
    assert num_parameters(compressed) == expected


@pytest.mark.parametrize("method", WITH_RANK_RATE)
def test_what_is_not_planned_keeps_its_weights_and_the_dense_network_is_untouched(method):
    model = build_model("resnet18", num_classes=10).eval()
    before = copy.deepcopy(model.state_dict())
    plan = plan_compression(model, method, rank_rate=0.1, layers=["layer[23].*.conv*"])
    compressed = apply_plan(model, plan, iterations=3)
    assert num_parameters(compressed) == num_parameters(build_structure(model, plan))  # filling leaves factors shared
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    kept = compressed.state_dict()
    for key in ("conv1.weight", "layer1.1.conv2.weight", "layer3.0.downsample.0.weight", "fc.weight", "bn1.weight"):
        assert torch.equal(kept[key], before[key])
    assert not compressed.training
    # each compressed layer approximates its own dense layer, not another of the group
    x = torch.randn(1, 256, 8, 8)
    for block in range(2):
        outputs = [model.layer3[other].conv2(x) for other in range(2)]
        errors = [(compressed.layer3[block].conv2(x) - output).norm() for output in outputs]
        assert errors[block] < outputs[block].norm() < errors[1 - block]


def test_a_module_used_under_two_names_stays_one():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"a": conv, "b": conv, "inner": nn.Sequential(conv)})
    compressed = apply_plan(model, Plan((Group(("b",), right_rank=2),)))
    assert compressed["a"] is compressed["b"] is compressed["inner"][0]
    assert not isinstance(compressed["a"], nn.Conv2d)


def test_shared_factor_serves_members_of_different_stride():
    model = build_model("resnet50", num_classes=10)
    plan = plan_compression(model, "ljsvd", rank_rate=0.1)
    group = next(group for group in plan.groups if "layer2.0.conv2" in group.members)
    compressed = build_structure(model, plan)
    first, second = (compressed.get_submodule(name) for name in group.members[:2])
    assert (first.u.stride, first.v.stride, second.u.stride) == ((2, 1), (1, 2), (1, 1))
    assert first.u.weight is second.u.weight


def test_groups_of_the_papers_networks():
    groups = find_groups(build_model("resnet34", num_classes=10))
    assert [len(group) for group in groups] == [1, 3, 4, 1, 5, 6, 1, 2, 3]
    joint = find_groups(build_model("resnet34", num_classes=10, source="torchvision"), hid="joint")
    assert [len(group) for group in joint] == [4, 4, 6, 6, 3, 3]
    assert joint[0] == tuple(f"layer2.{i}.conv1" for i in range(4))
    dense = find_groups(build_model("resnet34", num_classes=10), hid="dense")
    assert [len(group) for group in dense] == [3, 4, 5, 6, 2, 3]
    assert [len(group) for group in find_groups(build_model("resnet50", num_classes=10))] == [
        1,
        3,
        4,
        4,
        1,
        5,
        6,
        6,
        1,
        2,
        3,
        3,
    ]
    assert [len(group) for group in find_groups(build_model("resnet18", num_classes=10))] == [1, 1, 2] * 3
    for source in ("timm", "torchvision"):
        vgg = build_model("vgg16_bn", num_classes=10, source=source)
        assert [len(group) for group in find_groups(vgg)] == [1, 2, 1, 2, 3]
        assert num_parameters(vgg) == 14_728_266


def test_layers_can_be_chosen_by_pattern():
    model = build_model("resnet18", num_classes=10)
    assert find_groups(model, layers=["layer1.*.conv2"]) == [("layer1.0.conv2", "layer1.1.conv2")]
    assert find_groups(model, layers=["layer2.0.downsample.0", "conv1"]) == [("conv1",), ("layer2.0.downsample.0",)]
    with pytest.raises(ValueError, match=r"'layer9\.\*' matches no"):
        find_groups(model, layers=["layer1.*", "layer9.*"])
    with pytest.raises(ValueError, match="found no stages"):
        find_groups(nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "jsvd", "rank_rate": 0.1}, "unknown method 'jsvd'; one of svd"),
        ({"method": "svd", "rank_rate": 0.0}, "positive"),
        ({"method": "svd", "rank_rate": float("nan")}, "positive"),
        ({"method": "bijsvd", "rank_rate": 0.1, "left_share": 1.5}, "between 0 and 1"),
        ({"method": "svd", "rank_rate": 0.1, "hid": "no"}, "hid must be"),
        ({"method": "svd", "rank_rate": 0.001}, r"rank 0 for layer2.0.conv1; take rank_rate >= 0.00782,"),
        ({"method": "svd", "rank_rate": 1.0}, r"no fewer than the 73,728 of the dense"),
        ({"method": "tucker2", "rank_rate": 0.001}, "leaves rank 0"),
        ({"method": "tucker2", "rank_rate": 3}, "no saving"),
        ({"method": "nc_ctd", "rank_rate": 0.1, "own_per_shared": 0}, "own_per_shared must be"),
        ({"method": "tucker2", "rank_rate": 0.1, "layers": ["*downsample.0"]}, "wider than 1x1"),
        ({"method": "ljsvd", "rank_rate": 1.5, "hid": "dense"}, r"take rank_rate < 1.5,"),
    ],
)
def test_plans_that_cannot_work_are_refused_with_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_compression(build_model("resnet18", num_classes=10), **arguments)


@pytest.mark.parametrize("method", MATRIX_METHODS)
def test_the_rank_rates_named_in_the_messages_work(method):
    model = build_model("resnet34", num_classes=10)
    with pytest.raises(ValueError, match="rank_rate >= ") as caught:
        plan_compression(model, method, rank_rate=1e-5)
    smallest = float(re.search(r">= ([\d.]+),", str(caught.value))[1])
    plan = plan_compression(model, method, rank_rate=smallest)
    assert min(group.left_rank + group.right_rank for group in plan.groups) == 1
    with pytest.raises(ValueError, match="rank_rate < ") as caught:
        plan_compression(model, method, rank_rate=50)
    largest = float(re.search(r"< ([\d.]+),", str(caught.value))[1])
    plan_compression(model, method, rank_rate=0.999 * largest)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Group((), right_rank=1),
        lambda: Group(("a", "a"), right_rank=1),
        lambda: Group(("a", "b")),
        lambda: Group(("a",), left_rank=1),
        lambda: Group(("a", "b"), left_rank=-1, right_rank=2),
        lambda: Group(("a", "b"), right_rank=True),
        lambda: Group(("a", "b"), right_rank=2.0),
        lambda: Group(("a", "b"), right_rank="2"),
        lambda: TuckerGroup(("a",), (True, 2)),
        lambda: TuckerGroup(("a",), 2),
        lambda: TuckerGroup(("a",), (1, 0)),
        lambda: TuckerGroup(("a", "b"), (1, 1), (1,)),
        lambda: TuckerGroup(("a",), (1, 1), (1, 1)),
        lambda: TuckerGroup(("a", "a"), (1, 1)),
        lambda: Plan((Group(("a", "b"), 1), Group(("b", "c"), 1))),
        lambda: Plan.from_json("{}"),
        lambda: Plan.from_json("not json"),
        lambda: Plan.from_json(Plan().to_json().replace('"version": 1', '"version": 2')),
        lambda: Plan.from_json(Plan((Group(("a", "b"), 1),)).to_json().replace('"matrix"', '"tucker"')),
    ],
)
def test_bad_groups_and_plans_are_refused(bad):
    with pytest.raises(ValueError, match=r"group|plan"):
        bad()


def test_ranks_may_be_numpys_integers():
    matrix, tucker = Group(("a", "b"), np.int64(2), np.int32(3)), TuckerGroup(("a",), np.array([4, 5]))
    assert all(type(rank) is int for rank in (matrix.left_rank, matrix.right_rank, *tucker.own))
    plan = Plan((matrix, TuckerGroup(("c", "d"), (np.uint8(1), 2), [np.int64(3), 4])))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("method", ["bijsvd", "tucker2", "nc_ctd"])
def test_plan_survives_json(method):
    model = build_model("resnet34", num_classes=10)
    plan = plan_compression(model, method, rank_rate=0.04, left_share=0.3)
    assert Plan.from_json(plan.to_json()) == plan


def test_members_that_do_not_fit_are_refused():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), StdConv2d(8, 8, 3)
    )
    for group, message in [
        (Group(("0", "1"), right_rank=1), "shares V"),
        (Group(("0", "1"), left_rank=1), "shares U"),
        (Group(("2",), right_rank=1), "groups=2"),
        (Group(("4",), right_rank=1), "plain nn.Conv2d or nn.Linear; the network has StdConv2d"),
        (Group(("3",), right_rank=1), "has ReLU"),
        (Group(("9",), right_rank=1), "has nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            apply_plan(model, Plan((group,)))
    with pytest.raises(ValueError, match="before it is wrapped"):
        apply_plan(nn.DataParallel(model), Plan())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"group 0: .*NaN"):
        apply_plan(model, Plan((Group(("0",), right_rank=1),)))


def test_flops_count_two_for_each_multiply_add():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert num_flops(model, (3, 4, 4)) == 2 * (3 * 8 * 9 * 16 + 8 * 16 * 5)
    assert num_parameters(model, batch_norm=False) == num_parameters(model) - 16
