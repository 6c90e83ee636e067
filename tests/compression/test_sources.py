"""Images of one source are never on both sides of a trial."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from jointsvd import compress
from jointsvd.compression.moments import FOLDS
from jointsvd.compression.sources import HELD_OUT, ROUND, apart, shaping
from jointsvd.compression.task import Task


def numbered(num, batch=10):
    """Images whose only value is their number."""
    return list(torch.arange(num, dtype=torch.float32).reshape(num, 1).split(batch))


@pytest.mark.parametrize("judging", [False, True])
@pytest.mark.parametrize("num", [64, 61])
def test_no_source_is_in_two_parts(num, judging):
    sources = [f"picture {number % 9}" for number in range(num)]
    ordered = apart(numbered(num), sources, Task(), judging=judging)
    assert [len(batch) for batch in ordered] == [len(batch) for batch in numbered(num)]
    place = torch.cat(ordered).int().flatten().tolist()
    shape = torch.cat(list(shaping(ordered, Task(), judging=judging))).int().flatten().tolist()
    parts = [{sources[number] for number in shape[fold::FOLDS]} for fold in range(FOLDS)]
    parts.append({sources[number] for number in place[HELD_OUT::ROUND]})
    if judging:
        parts.append({sources[number] for number in place[3::ROUND]})
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))  # none in two


def test_what_is_held_out_comes_once():
    sources = ["a"] * 30 + ["b"] * 20 + ["c"] * 10 + ["d"] * 10 + ["e"] * 5 + ["f"] * 5
    held_out = torch.cat(apart(numbered(80), sources, Task(), judging=False)).flatten()[HELD_OUT::ROUND]
    assert len(held_out.unique()) == len(held_out) == 10
    assert held_out.min() >= 70  # the smallest sources


def test_the_error_on_other_sources_is_told():
    """A layer sees one direction of its own in each source: other images of a source show it, other sources do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).eval()
    directions, sources = 3 * torch.randn(12, 64), [number % 12 for number in range(96)]
    images = directions[sources] + 0.1 * torch.randn(96, 64)
    told = compress(model, [images], params=2, sources=sources).plan.settings["predicted_kl"]
    untold = compress(model, [images], params=2).plan.settings["predicted_kl"]
    others = 3 * torch.randn(500, 64)
    found = compress(model, [images], params=2, sources=sources).model
    p, q = (network(others).log_softmax(1) for network in (model, found))
    reached = float((p.exp() * (p - q)).sum(1).mean().detach())
    assert reached / 2 < told < 2 * reached
    assert untold < reached / 4


def test_sources_may_be_numbers_of_any_kind():
    numbers = torch.arange(64) % 9
    given = [apart(numbered(64), kind, Task(), judging=False) for kind in (numbers, numbers.numpy(), numbers.tolist())]
    assert all(torch.equal(torch.cat(one), torch.cat(given[0])) for one in given)


@pytest.mark.parametrize(
    ("images", "sources", "message"),
    [
        ([torch.zeros(20, 3)], ["a"] * 19, "each of the 20 images is from; got 19"),
        ([torch.zeros(20, 3)], ["a", "b"] * 10, "names 2 different ones, too few"),
        ([torch.zeros(10, 3), torch.zeros(10, 4)], range(20), "all of one size"),
        ([], [], "all of one size"),
        ([torch.zeros(20, 3)], [["a"]] * 20, "a name or a number"),
        (DataLoader(torch.zeros(20, 3), 5, shuffle=True), range(20), "shuffle=False"),
    ],
)
def test_what_cannot_be_kept_apart(images, sources, message):
    with pytest.raises(ValueError, match=message):
        compress(nn.Linear(3, 2), images, params=2, sources=sources)
