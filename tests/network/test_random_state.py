"""Who calls the package draws the random numbers that he would have drawn without it."""

import random

import numpy as np
import pytest
import torch

from jointsvd import Group, Plan, apply_plan, build_structure, load_compressed, num_flops, save_compressed
from jointsvd.network.random_state import random_state_kept


def drawn():
    """The next numbers of all generators."""
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


class Noisy(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x + torch.rand(1).item() + random.random())


MODEL = Noisy(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
PLAN = Plan((Group(("0",), 0, 2), Group(("1",), 0, 2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda path: apply_plan(MODEL, PLAN),
        lambda path: load_compressed(path, MODEL),
        lambda path: num_flops(MODEL, (3, 8, 8)),
    ],
    ids=["apply_plan", "load_compressed", "num_flops"],
)
def test_no_random_number_is_missing(call, tmp_path):
    path = tmp_path / "network.safetensors"
    save_compressed(path, apply_plan(MODEL, PLAN), PLAN)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    call(path)
    assert drawn() == expected


def test_also_after_an_error():
    torch.manual_seed(1)
    expected = drawn()[2]
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="channels"), random_state_kept():
        MODEL(torch.rand(1, 2, 8, 8))
    assert torch.rand(1).item() == expected


def test_new_weights_come_from_the_generator():
    """Networks trained from scratch depend on it."""
    torch.manual_seed(1)
    first, second = build_structure(MODEL, PLAN), build_structure(MODEL, PLAN)
    torch.manual_seed(1)
    again = build_structure(MODEL, PLAN)
    assert torch.equal(first[0].u.weight, again[0].u.weight)
    assert not torch.equal(first[0].u.weight, second[0].u.weight)
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(3, 2, (3, 1), padding=(1, 0), bias=False)
    assert torch.equal(conv.weight, first[0].u.weight)
