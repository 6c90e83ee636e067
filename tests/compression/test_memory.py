"""Images in parts: what comes out is what comes out of all at once, whatever the memory."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jointsvd import Group, Plan, apply_plan, collect_statistics, compress
from jointsvd.compression import memory
from jointsvd.compression.refitting import match_norms, refit
from jointsvd.compression.walking import held, together, walk
from jointsvd.training.models import build_model

IMAGES = torch.randn(44, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LITTLE = 1e-6  # GB: less than one image takes


class Branches(nn.Module):
    """Holds tensors while other layers run, and changes some in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu_(self.norm(self.stem(x)))
        y = self.left(x)
        view = y[:, ::2]
        y += self.right(x)
        view.mul_(2)
        x = torch.cat([x, y], 1).movedim(1, -1)
        return self.head(self.up(x).relu().mean((1, 2)))


PLAN = Plan(tuple(Group((name,), 0, 4) for name in ("stem", "left", "right", "up", "head")))


def walking():
    return [thread for thread in threading.enumerate() if thread.name == "walk"]


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=2e-4, rtol=2e-3, msg=key)


def test_statistics_do_not_depend_on_the_pieces_in_which_batches_pass():
    model = Branches().eval()
    one, other = (collect_statistics(model, IMAGES.split(20), memory=given) for given in (None, LITTLE))
    for what in ("inputs", "outputs"):
        for name, moment in getattr(one, what).items():
            torch.testing.assert_close(moment, getattr(other, what)[name], atol=1e-5, rtol=1e-4)
    assert one.num_images == other.num_images == 44


@pytest.mark.parametrize("model", [Branches, lambda: build_model("resnet20", num_classes=10)])
def test_a_refit_in_parts_is_one_of_all_images(model):
    torch.manual_seed(0)
    model = model().train()
    plan = (
        PLAN
        if isinstance(model, Branches)
        else Plan(
            (Group(("layer1.0.conv1", "layer1.0.conv2"), 8, 0), Group(("layer2.1.conv1",), 0, 8), Group(("fc",), 0, 4))
        )
    )
    statistics = collect_statistics(model, [IMAGES])
    found = []
    for given in (None, LITTLE):
        compressed = apply_plan(model, plan, statistics=statistics)
        found.append(refit(model, compressed, plan, statistics, IMAGES.split(13), memory=given))
    same({"outputs": found[0].eval()(IMAGES)}, {"outputs": found[1].eval()(IMAGES)})
    assert model.training
    assert not walking()


def test_norms_are_matched_over_all_images_at_once():
    model = build_model("resnet20", num_classes=10).eval()
    plan = Plan((Group(("conv1",), 0, 2), Group(("layer2.0.conv1",), 0, 4)))
    found = [
        match_norms(model, apply_plan(model, plan), batches, memory=given).state_dict()
        for batches, given in (([IMAGES], None), (IMAGES.split(7), None), (IMAGES.split(20), LITTLE))
    ]
    same(found[0], found[1])
    same(found[0], found[2])


def test_images_of_several_sizes_walk_together():
    model = Branches().eval()
    compressed = apply_plan(model, PLAN)
    match_norms(model, compressed, [IMAGES[:8], IMAGES[8:, :, :9]])
    assert not torch.equal(compressed.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize("options", [{}, {"refit": False}])
def test_compress_with_little_memory(options):
    one, other = (compress(Branches(), IMAGES.split(22), params=1.5, memory=given, **options) for given in (4, LITTLE))
    assert one.plan.groups == other.plan.groups
    same({"outputs": one.model(IMAGES)}, {"outputs": other.model(IMAGES)})


@pytest.mark.parametrize("given", [0, -1, "much", float("inf")])
def test_memory_is_a_number_of_gigabytes(given):
    with pytest.raises(ValueError, match="memory"):
        compress(Branches(), [IMAGES], params=2, memory=given)


def test_half_of_what_is_free():
    free = memory.room(None, torch.device("cpu"))
    assert 2**20 < free < 2**50
    assert memory.room(1.5, torch.device("cpu")) == 1.5 * 2**30


def passes(num, change=lambda number, order: None):
    """Passes that bring 1, 2, ... to two meetings, what came there, and in which order."""
    met, order = [], []

    def first(seen):
        met.append(sum(float(x.sum()) for (x,) in seen))
        met.append(sum(float(x.sum()) for (x,) in seen))

    def second(seen):
        met.append(seen.num)

    def run(number):
        x = torch.full((1000,), float(number))
        together(first, x)
        order.append(number)
        change(number, order)
        assert float(x.sum()) == 1000 * number
        together(second, x[:10])

    return [lambda number=number: run(number) for number in range(1, num + 1)], met, order


@pytest.mark.parametrize("room", [0, 10**9])
def test_all_parts_come_before_any_goes_on(room):
    work, met, order = passes(5)
    walk(work, room)
    assert met == [15_000, 15_000, 50]
    assert order == [1, 2, 3, 4, 5]
    assert not walking()


def test_what_waiting_parts_have_given_back_is_the_systems(measured):
    def work():
        for _ in range(3):
            for size in (3_000_000, 5_000_000):
                torch.ones(size)
            together(meet)

    def meet(seen):
        pass

    with measured() as cost:
        walk([work] * 30, 0)
    assert cost["megabytes"] < 200  # glibc would keep 57 of each


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_one_part_ends_all(error):
    def fail(number, order):
        if number == 3:
            raise error("stop")

    work, met, order = passes(5, fail)
    with pytest.raises(error):
        walk(work, 0)
    assert order == [1, 2, 3]
    assert len(met) == 2
    assert not walking()


def test_parts_that_go_different_ways_are_refused():
    def run(number):
        if number == 1:
            together(lambda seen: None, torch.zeros(1))

    with pytest.raises(ValueError, match="different ways"):
        walk([lambda number=number: run(number) for number in range(3)], 0)


def test_what_a_part_holds_is_not_in_memory_while_it_waits():
    sizes, kept = [], []

    def look(seen):
        sizes.extend(tensor.untyped_storage().nbytes() for tensor in kept)

    def run():
        kept.append(held(torch.arange(100.0)))
        mine = kept[-1]
        together(look, torch.zeros(3))
        assert torch.equal(mine, torch.arange(100.0))

    walk([run, run], 0)
    assert sizes == [0, 0]


def test_what_only_a_view_holds_comes_back_too():
    kept = []

    def nothing(seen):
        pass

    def run():
        x = torch.arange(100.0)
        view = x[50:]
        together(nothing, x)
        del x
        together(nothing, torch.zeros(3))
        kept.append(view)

    walk([run, run], 0)
    assert all(torch.equal(view, torch.arange(50.0, 100)) for view in kept)
