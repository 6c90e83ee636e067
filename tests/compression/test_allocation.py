"""Plans for a budget: met, binding, optimal, and compressed networks that keep what the plan promises."""

from itertools import product

import pytest
import torch
from torch import nn

from jointsvd import Budget, LayerTimes, num_flops, num_parameters
from jointsvd.compression.allocation import check_budget, plan_for_budget
from jointsvd.compression.calibration import recalibrate_batchnorm
from jointsvd.compression.compressed import compress
from jointsvd.compression.options import Choice
from jointsvd.compression.statistics import collect_statistics
from jointsvd.network.surgery import apply_plan, check_structure
from jointsvd.training.models import build_model

IMAGES = [torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = build_model("resnet20", num_classes=10).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1)  # timm begins with residual branches that do nothing
    return recalibrate_batchnorm(network, IMAGES)


@pytest.fixture(scope="module")
def statistics(model):
    return collect_statistics(model, IMAGES)


def rank_steps(choices):
    return max(choice.option.rank_cost[0] for choice in choices)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [{"params": 2}, {"params": 10}, {"flops": 4}, {"params": 6, "flops": 6}])
def test_budgets_hold_and_one_binds(model, statistics, budget, share):
    plan, choices = plan_for_budget(model, statistics, Budget(**budget), share=share)
    compressed = apply_plan(model, plan, statistics=statistics)
    check_structure(compressed, plan)
    sizes = {"params": num_parameters, "flops": lambda network: num_flops(network, (3, 16, 16))}
    reached = {name: sizes[name](model) / sizes[name](compressed) for name in budget}
    assert all(reached[name] >= factor for name, factor in budget.items())
    step = rank_steps(choices) / num_parameters(compressed)
    assert min(reached[name] / factor for name, factor in budget.items()) <= 1.02 + step
    assert sum(choice.cost[1] for choice in choices) == pytest.approx(num_flops(compressed, (3, 16, 16)))


def test_ranks_are_multiples(model, statistics):
    plan, _ = plan_for_budget(model, statistics, Budget(params=4), rank_multiple=4)
    assert all((group.left_rank + group.right_rank) % 4 == 0 for group in plan.groups)


def test_smaller_budgets_predict_larger_errors(model, statistics):
    errors = [
        plan_for_budget(model, statistics, Budget(params=cf))[0].settings["predicted_error"] for cf in (2, 4, 8, 16)
    ]
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_the_choice_of_ranks_is_the_best_there_is():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 8)).eval()
    statistics = collect_statistics(model, [torch.randn(64, 12)])
    plan, choices = plan_for_budget(model, statistics, Budget(params=1.8), share=False)
    limit = num_parameters(model) / 1.8
    kept = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    options = [choice.option for choice in choices]
    ranks = [range(option.largest_rank(1) + 1) for option in options]
    every = ([Choice(o, r) for o, r in zip(options, chosen, strict=True)] for chosen in product(*ranks))
    fitting = [chosen for chosen in every if kept + sum(choice.cost[0] for choice in chosen) <= limit]
    best = min(sum(choice.error for choice in chosen) for chosen in fitting)
    assert plan.settings["predicted_error"] <= 1.15 * best  # a price has no plan for every size in between


def test_layers_that_are_equal_share():
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3)]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(128, 4)).eval()
    with torch.no_grad():
        for conv in convs[1:]:
            conv.weight.copy_(convs[0].weight)
    statistics = collect_statistics(model, [torch.randn(32, 8, 4, 4)])
    shared, _ = plan_for_budget(model, statistics, Budget(params=5))
    assert any(len(group.members) > 1 for group in shared.groups)
    alone, _ = plan_for_budget(model, statistics, Budget(params=5), share=False)
    assert shared.settings["predicted_error"] < alone.settings["predicted_error"]


def test_a_layer_that_changes_nothing_is_the_first_to_go():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.work, self.idle, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)

        def forward(self, x):
            y = self.work(x).relu()
            return self.head(y + 0 * self.idle(y))

    model = Idle().eval()
    plan, _ = plan_for_budget(model, collect_statistics(model, [torch.randn(64, 12)]), Budget(params=1.4), share=False)
    assert [group.members for group in plan.groups] == [("idle",)]
    assert plan.groups[0].right_rank == 1


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ({"params": 1000}, {}, "no plan reaches this budget: at rank 1 in all 22 layers"),
        ({"flops": 1000}, {}, "times fewer FLOPs"),
        ({"params": 2}, {"rank_multiple": 0}, "rank_multiple must be"),
        ({"params": 2}, {"rank_multiple": True}, "rank_multiple must be"),
        ({"params": 2}, {"rank_multiple": 1.5}, "rank_multiple must be"),
    ],
)
def test_budgets_that_cannot_be_met(model, statistics, budget, options, message):
    with pytest.raises(ValueError, match=message):
        plan_for_budget(model, statistics, Budget(**budget), **options)
    with pytest.raises(ValueError, match=message):
        check_budget(model, IMAGES[0][:1], Budget(**budget), **options)


def test_flops_of_what_cannot_be_factored_count():
    torch.manual_seed(0)
    grouped = type("Mine", (nn.Conv2d,), {})(16, 16, 3, padding=1, groups=4)
    first, head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(256, 10)
    model = nn.Sequential(first, grouped, nn.MaxPool2d(4), nn.Flatten(), head).eval()
    result = compress(model, IMAGES, flops=1.6)
    assert num_flops(model, (3, 16, 16)) / num_flops(result.model, (3, 16, 16)) >= 1.6
    with pytest.raises(ValueError, match=r" 1\.\d+ times fewer FLOPs"):  # the grouped conv alone has half of them
        compress(model, IMAGES, flops=3)


@pytest.mark.parametrize("narrow", [False, True])
def test_bad_budgets_are_seen_before_anything_is_measured(model, monkeypatch, narrow):
    for what in ("compressed.collect_statistics", "slim.collect_statistics", "slim.measure_layer_times"):
        monkeypatch.setattr(f"jointsvd.compression.{what}", lambda *_: pytest.fail("too late"))
    for budget, message in (
        ({"params": 1000}, "no plan reaches"),
        ({"params": 1000, "faster": 2}, "no plan reaches"),
        ({"bytes": 1e6}, "buffers"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, IMAGES, **budget, narrow=narrow)
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        compress(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768)), IMAGES, params=2)
    with pytest.raises(ValueError, match="images of one size"):
        compress(model, [*IMAGES, torch.zeros(1, 3, 8, 8)], params=2)


def test_compress_in_one_call(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = compress(model, iter([(IMAGES[0], torch.zeros(16))]), params=4, flops=3)
    assert num_parameters(model) / num_parameters(result.model) >= 4
    assert num_flops(model, (3, 16, 16)) / num_flops(result.model, (3, 16, 16)) >= 3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    check_structure(result.model, result.plan)
    layers = [name for line in result.report for name in line["layers"]]
    assert len(layers) == len(set(layers)) == 18 + 2 + 1 + 1  # convs of blocks, shortcuts, stem and classifier
    small = compress(model, IMAGES, Budget(bytes=4))
    size = sum(x.numel() * x.element_size() for x in [*small.model.parameters(), *small.model.buffers()])
    assert sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()]) / size >= 4


def test_a_budget_of_one_leaves_everything_dense(model, statistics):
    plan, choices = plan_for_budget(model, statistics, Budget(params=1))
    assert not plan.groups
    assert {choice.rank for choice in choices} == {0}


def test_ranks_that_take_no_time_and_save_nothing():
    """On a device where a rank takes no time that can be seen; one layer's weights are zero."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.full, self.zero, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 5)
            self.zero.weight.data.zero_()

        def forward(self, x):
            return self.head(self.full(x).tanh() + self.zero(x))

    model = Both().eval()
    times = LayerTimes(3.0, dict.fromkeys(("full", "zero", "head"), (1.0, 0.2, 0.0)))
    statistics = collect_statistics(model, [torch.randn(64, 20)])
    _, choices = plan_for_budget(model, statistics, Budget(faster=1.9), times=times, share=False)
    ranks = {choice.option.layers[0].name: choice.rank for choice in choices}
    assert ranks["full"] == 9  # all that save parameters: they are free
    assert ranks["zero"] == 1
