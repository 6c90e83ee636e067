"""Which test images were right: packed into rows, and differences paired over them."""

import numpy as np
import pandas as pd
import pytest
import torch

from jointsvd.results.paired import difference
from jointsvd.training.answers import pack, unpack
from jointsvd.training.classifier import interleave


@pytest.mark.parametrize("num", [1, 8, 10_001])
def test_answers_survive_packing(num):
    correct = np.random.default_rng(0).random(num) < 0.9
    assert np.array_equal(unpack(pack(correct), num), correct)


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", pack([True] * 17)])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not the packed answers of 16 images"):
        unpack(text, 16)


def test_the_interval_is_that_of_the_paired_bootstrap():
    random = np.random.default_rng(1)
    easy = random.random(2000) < 0.9
    ours = [easy & (random.random(2000) < 0.97) for _ in range(3)]
    control = [easy & (random.random(2000) < 0.99) for _ in range(3)]
    found = difference(ours, control)
    assert found.points == pytest.approx(100 * (np.mean(ours) - np.mean(control)))
    d = 100 * (np.mean(ours, axis=0) - np.mean(control, axis=0))
    means = [random.choice(d, len(d)).mean() for _ in range(2000)]
    assert found.interval == pytest.approx(1.96 * np.std(means), rel=0.1)
    assert str(difference([easy], [easy])) == "+0.00 ± 0.00"


@pytest.mark.parametrize(("num", "num_ranks"), [(7, 1), (8, 2), (7, 3), (2, 3)])
def test_gathered_values_come_in_the_order_of_the_test_set(num, num_ranks):
    gathered = torch.cat([torch.arange(rank, num, num_ranks) for rank in range(num_ranks)])
    assert interleave(gathered, num_ranks).tolist() == list(range(num))


def test_committed_answers_are_those_of_the_committed_accuracies(experiment_rows):
    rows = experiment_rows.dropna(subset="correct")
    for row in rows.itertuples():
        assert 100 * unpack(row.correct, row.num_test).mean() == pytest.approx(row.top1, abs=1e-4)
        if pd.notna(row.raw_correct):
            assert 100 * unpack(row.raw_correct, row.num_test).mean() == pytest.approx(row.raw_top1, abs=1e-4)
