"""Batch norms corrected behind compressed layers, so that what leaves them is again what leaves the dense ones."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.compression.walking import Seen, held, together
from jointsvd.network.narrowing import some, spread

_ROUNDING = 1e-6  # of the largest input, by which the halves of a batch may differ where nothing was compressed
_DEAD = 1e-6  # of the variance that the norm divides by: a channel that moves less on these images does not move


@dataclass
class Channels:
    """Mean and variance of each channel (dimension 1), over all that was added."""

    num: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, 1))

    def add(self, x: Tensor) -> None:
        self.add_sums(*_sums(x))

    def add_sums(self, num: Tensor, sums: Tensor) -> None:
        self.sums = self.sums.to(sums) + sums
        self.num += int(num)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        mean, square = self.sums / self.num
        return mean, (square - mean.square()).clamp_min(0)

    @property
    def variance(self) -> float:
        """Mean of the channels'; where they do not vary, as in one image, their mean square, or 1 if that is 0."""
        mean, variance = self.moments
        return float(variance.mean()) or float(mean.square().mean()) or 1.0


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """How many values a channel has, and the sums of these and of their squares."""
    num = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
    mean = mean.double()
    return torch.tensor(num), num * torch.stack([mean, variance.double() + mean.square()])


class MatchedNorm(nn.Module):
    """A batch norm of the dense network for the first half of a batch, and the one in its place in the compressed
    network for the second, corrected first: the line that takes its inputs to the mean and the variance of the dense
    norm's goes into its running mean and variance. Where both halves are alike nothing changes; channels that do not
    move get the mean alone. kept: the channels there are in the compressed network (None: all)."""

    def __init__(self, dense: _BatchNorm, compressed: _BatchNorm, kept: Tensor | None = None):
        super().__init__()
        self.dense, self.compressed, self.kept = dense, compressed, kept
        self.wanted, self.found, self.differ = Channels(), Channels(), False

    def forward(self, batch: Tensor) -> Tensor:
        x, y = held(batch).chunk(2)
        if self.dense.running_mean is not None:
            differ = (x - y).abs().max() > _ROUNDING * x.abs().max()
            together(self._meet, differ, *(found for half in (x, y) for found in _sums(half)))
        if self.kept is None:
            return held(torch.cat([self.dense(x), self.compressed(y)]))
        found = self.compressed(some(self, y, self.kept))
        return held(torch.cat([self.dense(x), spread(self, found, self.kept, y.shape[1])]))

    def _meet(self, seen: Seen) -> None:
        """Of each part: whether its halves differ, and how many values of what sums they have."""
        brought = [tuple(tensor.clone() for tensor in tensors) for tensors in seen]
        self.differ = self.differ or any(bool(tensors[0]) for tensors in brought)
        if not self.differ:
            return
        for _, *sums in brought:
            self.wanted.add_sums(*sums[:2])
            self.found.add_sums(*sums[2:])
        self._correct()

    def _correct(self) -> None:
        """With z = a (y - m_y) + m_x in place of x, (z - mean) / sd is (y - m_y - (mean - m_x) / a) / (sd / a)."""
        (mean_x, var_x), (mean_y, var_y) = self.wanted.moments, self.found.moments
        dense, norm = self.dense, self.compressed
        assert dense.running_mean is not None
        assert dense.running_var is not None
        mean, divided = dense.running_mean.double(), dense.running_var.double() + dense.eps
        moves = torch.minimum(var_x, var_y) > _DEAD * divided
        a = torch.where(moves, var_x / var_y.clamp_min(1e-300), torch.ones_like(var_x)).sqrt()
        a = torch.minimum(a, (divided / dense.eps).sqrt())  # no running variance below 0
        kept = slice(None) if self.kept is None else self.kept.to(a.device)
        norm.running_mean.copy_((mean_y + (mean - mean_x) / a)[kept])  # type: ignore[union-attr]
        norm.running_var.copy_((divided / a.square() - dense.eps)[kept])  # type: ignore[union-attr]
