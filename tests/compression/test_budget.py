"""What a budget may be, and that it is looked at before anything runs."""

import numpy as np
import pytest
import torch
from torch import nn

from jointsvd import Budget, compress, num_parameters

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give a budget: params, flops"),
        ({"params": None, "latency_ms": None}, "give a budget: params, flops"),
        *(({name: value}, f"{name} is a factor of 1 or more .*got {value!r}")
          for name in ("params", "flops", "bytes", "faster")
          for value in (0, 0.5, -3, True, "2", NAN, INF, [2])),
        *(({"params": 2, "latency_ms": value}, f"latency_ms is a number of milliseconds above 0, got {value!r}")
          for value in (0, -5, True, "2", NAN, INF)),
        ({"flops": 2, "faster": 2}, "not both"),
        ({"flops": 2, "latency_ms": 2}, "not both"),
    ],
)  # fmt: skip
def test_bad_budgets_are_refused_before_anything_runs(values, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Budget(**values)

    class Runs(nn.Module):
        def forward(self, x):
            pytest.fail("too late")

    def images():
        pytest.fail("too late")
        yield

    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        compress(Runs(), images(), **values)


def test_budgets_that_go_together():
    assert Budget(params=1, bytes=np.float32(4), faster=2, latency_ms=0.5).timed
    assert type(Budget(params=np.float32(4)).params) is float
    assert Budget(params=22).params == 22
    assert not Budget(params=22).timed


def test_bytes_and_milliseconds_become_factors():
    model = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9))  # 108 parameters, and buffers of 80 bytes
    assert num_parameters(model) == 108
    assert Budget(params=3).params_of(model) == 3
    assert Budget(bytes=4).params_of(model) == pytest.approx(432 / ((432 + 80) / 4 - 80))
    assert Budget(bytes=1.1, params=3).params_of(model) == 3
    with pytest.raises(ValueError, match="bytes=10 leaves less than the model's buffers alone, 80 bytes"):
        Budget(bytes=10).params_of(model)
    assert Budget(params=3).faster_than(8) is None
    assert Budget(faster=3).faster_than(8) == 3
    assert Budget(latency_ms=2).faster_than(8) == 4
    assert Budget(latency_ms=2, faster=5).faster_than(8) == 5
    assert Budget(latency_ms=20).faster_than(8) == 1


def test_a_budget_and_its_fields_are_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 5)).eval()
    images = [torch.randn(32, 12)]
    assert compress(model, images, Budget(params=1.3)).plan == compress(model, images, params=1.3, flops=None).plan
    with pytest.raises(ValueError, match="not both: got a Budget and params"):
        compress(model, images, Budget(params=2), params=2)
    with pytest.raises(ValueError, match="by its fields"):
        compress(model, images, 22)
