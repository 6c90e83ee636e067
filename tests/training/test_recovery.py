"""Learning from the dense network, decay of products, moving averages."""

import pytest
import torch
from torch import nn

from jointsvd import Group, Plan, build_structure
from jointsvd.network.surgery import apply_plan
from jointsvd.training.classifier import Classifier
from jointsvd.training.recovery import distillation_loss, factors_of, squared_products
from jointsvd.training.schedule import Schedule

SCHEDULE = {
    "epochs": 1, "batch_size": 8, "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01,
    "one_cycle": True, "milestones": [], "warmup_lrs": [], "init_std": None,
}  # fmt: skip


def dense():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 5)
    )  # fmt: skip


PLAN = Plan((Group(("0",), 0, 2), Group(("2",), 0, 3), Group(("4",), 0, 2)))


def test_products_are_those_of_the_dense_weights():
    """At full rank the product is the dense weight itself."""
    model = dense()
    whole = Plan((Group(("0",), 0, 9), Group(("2",), 0, 18), Group(("4",), 0, 5)))
    expected = sum(model[i].weight.square().sum() for i in (0, 2, 4))
    torch.testing.assert_close(squared_products(apply_plan(model, whole)), expected)


def test_a_shared_factor_decays_with_each_product_it_is_in():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)))
    shared = build_structure(model, Plan((Group(("0", "1", "2"), 2, 0),)))
    assert len(factors_of(shared)) == 1 + 3
    products = [torch.einsum("rihx,orxw->oihw", layer.u.weight, layer.v.weight) for layer in shared]
    torch.testing.assert_close(squared_products(shared), sum(product.square().sum() for product in products))


def test_the_decay_of_products_takes_the_place_of_that_of_factors():
    model = build_structure(dense(), PLAN)
    classifier = Classifier(model, 5, Schedule(**SCHEDULE, product_decay=True))
    classifier.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    groups = classifier.configure_optimizers()["optimizer"].param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(3, 0.01), (6, 0.0)]
    images, labels = torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    plain = Classifier(model, 5, Schedule(**SCHEDULE))._loss(images, labels)
    torch.testing.assert_close(classifier._loss(images, labels) - plain, 0.005 * squared_products(model))


def test_distillation():
    logits, wanted = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    expected = 9 * torch.nn.functional.kl_div(
        (logits / 3).log_softmax(1), (wanted / 3).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(distillation_loss(logits, wanted, 3.0), expected)
    assert distillation_loss(wanted, wanted, 2.0) == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_no_part_of_the_network():
    teacher, network = dense(), build_structure(dense(), PLAN)
    classifier = Classifier(network, 5, Schedule(**SCHEDULE, distillation=[1.0, 2.0]), teacher=teacher)
    assert not any("teacher" in key for key in classifier.state_dict())
    images, labels = torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    loss = classifier._loss(images, labels)
    torch.testing.assert_close(loss, distillation_loss(network(images), teacher(images), 2.0))
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": [2.0, 1.0]}, "distillation is "),
        ({"distillation": [0.5]}, "distillation is "),
        ({"distillation": [0.5, 0]}, "distillation must be a list "),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**SCHEDULE, **options)


def test_schedules_say_it():
    text = str(Schedule(**SCHEDULE, distillation=[0.5, 2], product_decay=True, ema=0.99))
    assert "distillation 0.5 at temperature 2, decay of products U V, EMA 0.99" in text
