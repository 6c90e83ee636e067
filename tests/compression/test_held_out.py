"""Errors on images that shaped nothing: against brute force, and against fresh images."""

import logging

import pytest
import torch
from torch import nn

from jointsvd import Budget, apply_plan, collect_statistics, compress, plan_for_budget
from jointsvd.compression.agreement import Part, agreement
from jointsvd.compression.held_out import _tried
from jointsvd.decomposition.metric import objective, shrunk


def seeded(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(len(size)))


def wide_network():
    """Many inputs to tell apart, of which a few directions matter; sure of itself, as trained networks are."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 60)).eval()


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_errors_of_all_ranks_are_those_of_their_products(blocks):
    torch.manual_seed(0)
    W, B, Y = torch.randn(6, 4 * blocks).double(), torch.randn(6, 3).double(), torch.randn(3, 4 * blocks).double()
    near, far = (M @ M.T for M in (torch.randn(6, 6).double(), torch.randn(4, 4).double()))
    expected = [objective([W], [near], [far], [B[:, :rank] @ Y[:rank]]) for rank in range(4)]
    torch.testing.assert_close(_tried(W, B, Y, near, far), torch.tensor(expected).double())


def test_few_images_do_not_promise_what_they_cannot_know():
    """48 images span 48 of the last layer's 200 input directions, so that on them rank 46 looks almost free."""
    model = wide_network()
    fresh = collect_statistics(model, [seeded(4000, 40)])
    plan, choices = plan_for_budget(
        model, statistics := collect_statistics(model, [seeded(48, 40)]), Budget(params=1.5)
    )
    predicted = {choice.option.layers[0].name: choice.error for choice in choices}
    compressed = apply_plan(model, plan, statistics=statistics)
    weights = {name: model.get_submodule(name).weight.T for name in ("0", "2")}
    for group in plan.groups:
        (name,) = group.members
        pair = compressed.get_submodule(name)
        product = (pair.v.weight @ pair.u.weight).T
        C, G = (moment.mean(0) for moment in (fresh.inputs[name] / 2, fresh.outputs[name]))
        reached = objective([weights[name]], [C], [G], [product])
        C, G = (moment.mean(0) for moment in (statistics.inputs[name] / 2, statistics.outputs[name]))
        on_its_own_images = objective([weights[name]], [C], [G], [product])
        assert reached / 2 < predicted[name] < 2 * reached
        assert on_its_own_images < reached / 2 or name == "0"


def test_shrinkage_goes_with_the_noise():
    torch.manual_seed(0)
    truth = torch.diag(torch.linspace(0.1, 2, 30)).double()

    def folds(num):
        samples = torch.randn(4, num, 30).double() @ truth.sqrt()
        return samples.mT @ samples / num

    few, many = folds(4), folds(4000)
    assert (shrunk(few) - truth).norm() < 0.8 * (few.mean(0) - truth).norm()
    torch.testing.assert_close(shrunk(many), many.mean(0), atol=0.01, rtol=0)
    assert torch.equal(shrunk(few[:1]), few[0])
    assert not shrunk(torch.zeros(4, 3, 3)).any()


def test_the_prediction_holds_on_images_that_compress_has_not_seen():
    model, fresh = wide_network(), seeded(4000, 40)
    result = compress(model, [seeded(256, 40)], params=1.5)
    predicted, reached = result.plan.settings["predicted_kl"], agreement(model, result.model, [fresh]).kl
    assert reached / 2 < predicted < 2 * reached
    assert result.held_out["images"] == 32
    assert result.held_out["predicted_kl"] == predicted
    assert result.held_out["kl"] == pytest.approx(reached, rel=0.5)


def test_a_prediction_that_fails_is_a_warning(caplog, monkeypatch):
    calls = []

    def broken(model, compressed, *_):
        if calls:  # behind the trial
            nn.init.constant_([*compressed.parameters()][-1][:1], 9)  # the last bias
        calls.append(compressed)
        return compressed

    monkeypatch.setattr("jointsvd.compression.compressed.match_norms", broken)
    with caplog.at_level(logging.WARNING):
        compress(wide_network(), [seeded(64, 40)], flops=1.2, refit=False)
    assert "on 8 held-out images" in caplog.text


def test_held_out_images_are_every_eighth_across_batches():
    batches = [(torch.arange(10.0)[:, None], "labels"), torch.arange(10.0, 17)[:, None]]
    held, rest = (torch.cat(list(Part(batches, 8, places)))[:, 0].tolist() for places in ([7], range(7)))
    assert held == [7, 15]
    assert sorted(held + rest) == list(range(17))


@pytest.mark.parametrize("num", [1, 2, 7])
def test_too_few_images_to_hold_any_out(num):
    result = compress(wide_network(), [seeded(num, 40)], params=1.2)
    assert result.held_out is None
    assert (result.plan.settings["predicted_kl"] is None) == (num == 1)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())
