"""Training towards the dense network, without labels."""

import pytest
import torch
from torch import nn

from jointsvd import Plan, apply_plan, compress
from jointsvd.compression.agreement import agreement
from jointsvd.compression.tuning import tune
from jointsvd.network.plan import Group

GENERATOR = torch.Generator().manual_seed(3)
IMAGES, APART, UNSEEN = (torch.randn(num, 3, 8, 8, generator=GENERATOR) for num in (96, 32, 256))


@pytest.fixture
def dense():
    torch.manual_seed(0)
    conv = [nn.Sequential(nn.Conv2d(n, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for n in (3, 16, 16)]
    network = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    nn.init.normal_(network[-1].weight, std=3)
    for _ in range(20):
        network(IMAGES)  # for the norms
    return network.eval()


PLAN = Plan((Group(("1.0", "2.0"), left_rank=8),))


def test_it_comes_closer_on_images_that_took_no_part(dense):
    compressed = apply_plan(dense, PLAN)
    before = agreement(dense, compressed, [UNSEEN]).kl
    found = tune(dense, compressed, [IMAGES], [APART], 120)
    assert found.steps
    assert found.kl < found.kl_before
    assert agreement(dense, compressed, [APART]).kl == pytest.approx(found.kl)
    assert agreement(dense, compressed, [UNSEEN]).kl < 0.8 * before


def test_the_start_is_kept_where_steps_do_not_help(dense):
    compressed = apply_plan(dense, Plan())  # already the dense network
    before = {key: tensor.clone() for key, tensor in compressed.state_dict().items()}
    found = tune(dense, compressed, [IMAGES], [APART], 8)
    assert (found.steps, found.kl, found.kl_before) == (0, 0, 0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in compressed.state_dict().items())


def test_what_must_stay_stays(dense):
    compressed = apply_plan(dense, PLAN)
    compressed[0][0].weight.requires_grad_(False)
    kept = {key: tensor.clone() for key, tensor in compressed.state_dict().items()}
    of_dense = {key: tensor.clone() for key, tensor in dense.state_dict().items()}
    state = torch.get_rng_state()
    compressed.train()
    tune(dense, compressed, [IMAGES], [APART], 30)
    assert compressed[1][0].u.weight is compressed[2][0].u.weight
    assert compressed.training
    assert not dense.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, of_dense[key]) for key, tensor in dense.state_dict().items())
    changed = {key for key, tensor in compressed.state_dict().items() if not torch.equal(tensor, kept[key])}
    assert "1.0.u.weight" in changed
    assert "0.0.weight" not in changed
    assert not any("running" in key for key in changed)
    assert all(parameter.grad is None for parameter in [*dense.parameters(), *compressed.parameters()])


def test_interrupted_it_leaves_the_best_so_far(dense, monkeypatch):
    compressed, looks = apply_plan(dense, PLAN), []

    def interrupted(*args):
        looks.append(agreement(*args))
        if len(looks) == 4:
            raise KeyboardInterrupt
        return looks[-1]

    monkeypatch.setattr("jointsvd.compression.tuning.agreement", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(dense, compressed, [IMAGES], [APART], 80)
    assert agreement(dense, compressed, [APART]).kl == pytest.approx(min(look.kl for look in looks[:3]))


def test_asked_of_compress(dense):
    images = [IMAGES, UNSEEN]
    plain, tuned = (compress(dense, images, params=8, tune=steps) for steps in (None, 60))
    assert plain.tuned is None
    assert tuned.tuned.steps
    assert tuned.held_out["images"] == plain.held_out["images"] == 44
    assert tuned.held_out["kl"] < plain.held_out["kl"]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "10"])
def test_steps_that_are_none(dense, steps):
    with pytest.raises(ValueError, match="tune must be"):
        compress(dense, [IMAGES], params=2, tune=steps)


def test_too_few_images_to_judge(dense):
    with pytest.raises(ValueError, match="tune needs 4 calibration images"):
        compress(dense, [IMAGES[:3]], params=2, tune=10)
