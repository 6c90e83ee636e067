"""What is seen while a network is compressed."""

import io

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jointsvd import compress


class Terminal(io.StringIO):
    def __init__(self, watched):
        super().__init__()
        self.watched = watched

    def isatty(self):
        return self.watched


@pytest.mark.parametrize("watched", [True, False])
def test_bars_where_somebody_watches(watched, monkeypatch):
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 5)).eval()
    terminal = Terminal(watched)
    monkeypatch.setattr("sys.stderr", terminal)
    compress(model, [torch.randn(32, 12)], params=1.3)
    seen = terminal.getvalue()
    for step in ("Measuring layers", "Decomposing", "Fitting layers"):
        assert (step in seen) == watched
    assert watched or not seen


@pytest.mark.parametrize("batches", [list, lambda batches: DataLoader(TensorDataset(torch.cat(batches)), batch_size=8)])
def test_bars_tell_the_time_left_over_images_and_layers(batches, monkeypatch):
    """Of 64 images 56 are measured; those that do not fit beside each other pass each layer in parts."""
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 5)).eval()
    terminal = Terminal(True)
    monkeypatch.setattr("sys.stderr", terminal)
    result = compress(model, batches(list(torch.randn(64, 12).split(16))), params=1.3, memory=1e-6)
    seen, layers = terminal.getvalue(), sum(len(group.members) for group in result.plan.groups)
    assert "/56 [" in seen
    assert f"/{14 * layers} [" in seen
