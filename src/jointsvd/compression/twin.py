"""The dense network and a compressed one side by side, as the two halves of one batch.

Where channels of the compressed network are gone, its half has zeros in their place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.compression.norms import MatchedNorm
from jointsvd.compression.walking import Seen, held, together
from jointsvd.network.copying import copied
from jointsvd.network.interface import StandIn
from jointsvd.network.layers import is_matrix
from jointsvd.network.narrowing import some, spread
from jointsvd.network.plan import Narrowed
from jointsvd.network.replacing import replace

Fit = Callable[[Seen], None]  # of a dense input, a compressed input and the dense outputs, in parts


def twin_of(
    model: nn.Module,
    compressed: nn.Module,
    fits: Mapping[str, Fit],
    done: Callable[[], object],
    narrowed: Sequence[Narrowed] = (),
) -> nn.Module:
    """Both networks side by side. done: called when a part of the images has passed a layer that was fitted. narrowed:
    channels of `model` that `compressed` does not have."""
    twin, read = copied(model), {item.reader: torch.tensor(item.kept) for item in narrowed}
    written = {name: torch.tensor(item.kept) for item in narrowed for name in (item.writer, *item.between)}
    for name, module in list(twin.named_modules()):
        other = compressed.get_submodule(name)
        if isinstance(module, _BatchNorm):
            replace(twin, module, MatchedNorm(module, cast(_BatchNorm, other), written.get(name)))
        elif is_matrix(module) and (not is_matrix(other) or name in read or name in written):
            replace(twin, module, _Halves(module, other, fits.get(name), done, read.get(name), written.get(name)))
    return twin


class _Halves(StandIn):
    """The dense layer for the first half of a batch; what stands for it, fitted first, for the second. read, written:
    the channels there are for the second."""

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        fit: Fit | None,
        done: Callable[[], object],
        read: Tensor | None,
        written: Tensor | None,
    ):
        super().__init__()
        self._take_sizes(dense)
        self.dense, self.compressed, self.fit, self.done = dense, compressed, fit, done
        self.read, self.written = read, written

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.dense.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.dense.bias)

    def forward(self, input: Tensor) -> Tensor:
        x, y = input.chunk(2)
        outputs = self.dense(x)
        y = y if self.read is None else some(self.dense, y, self.read)
        if self.fit:
            together(self._meet, x, y, outputs if self.written is None else some(self.dense, outputs, self.written))
            self.done()
        found = self.compressed(y)
        if self.written is not None:
            found = spread(self.dense, found, self.written, len(self.weight))
        return held(torch.cat([outputs, found]))

    def _meet(self, seen: Seen) -> None:
        assert self.fit
        with torch.autocast(self.weight.device.type, enabled=False):
            self.fit(seen)
