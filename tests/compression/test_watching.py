"""What is seen while a network is compressed."""

import io

import pytest
import torch
from torch import nn

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
