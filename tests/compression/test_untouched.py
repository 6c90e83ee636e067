"""Every parameter is of a layer that was chosen for, or of one that is listed with the reason why not."""

import pytest
import torch
from torch import nn

from jointsvd import compress, num_parameters


class MyConv(nn.Conv2d):
    pass


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.mine = nn.Conv2d(8, 8, 3, padding=1, groups=8), MyConv(8, 8, 3, padding=1)
        self.tied, self.again = (nn.Conv2d(8, 8, 3, padding=padding) for padding in (1, 2))
        self.again.weight = self.tied.weight
        self.transposed, self.last_norm = nn.ConvTranspose2d(8, 8, 3, 2), nn.LayerNorm(8)
        self.idle, self.ignored, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu() * self.scale
        x = self.again(self.tied(self.mine(self.grouped(x))).relu())
        x = self.last_norm(self.transposed(x).mean((2, 3)))
        self.ignored(x)
        return self.head(x)


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    return compress(Mixed().eval(), [torch.randn(16, 3, 8, 8)], params=1.01)


def test_reasons(result):
    reasons = {line["name"]: line["reason"] for line in result.untouched}
    assert reasons == {
        "": "no Conv2d or Linear",
        "grouped": "grouped conv (8 groups)",
        "mine": "a subclass of Conv2d may compute something else",
        "tied": "shares its weight with another layer",
        "again": "shares its weight with another layer",
        "transposed": "transposed conv of groups, or whose kernels overlap",
        "idle": "did not run",
        "ignored": "its output changed nothing",
        "norms": "norm",
    }
    assert {line["name"]: line["class"] for line in result.untouched}["norms"] == "BatchNorm2d, LayerNorm"
    assert sorted(name for line in result.report for name in line["layers"]) == ["head", "stem"]


def test_every_parameter_is_counted_once(result):
    model = Mixed()
    chosen = [model.get_submodule(name) for line in result.report for name in line["layers"]]
    weights, biases = sum(line["dense_parameters"] for line in result.report), sum(len(m.bias) for m in chosen)
    assert weights + biases + sum(line["parameters"] for line in result.untouched) == num_parameters(model)
