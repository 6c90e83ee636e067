"""Second moments of vectors, added up for each fold of the images while these pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointsvd.decomposition.spanned import Moment, Spanned

FOLDS = 4  # parts of the calibration images, so that what is fitted to some can be tried on others
_WIDE = 2048  # values, beyond which vectors are kept as they are as long as they are few
_FEW = 1 / 4  # of their values


def wide(size: int) -> bool:
    """Whether vectors of so many values are kept as they are, if they are few."""
    return size > _WIDE


class Sums:
    """Sums of ``v v^T`` over vectors v, and of ``v w^T`` with others w, by folds."""

    def __init__(self) -> None:
        self.counts = torch.zeros(FOLDS, dtype=torch.int64)  # of vectors
        self._kept: list[tuple[int, Tensor, Tensor | None]] | None = []
        self._sums: dict[int, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def add(self, fold: int, vectors: Tensor, others: Tensor | None = None) -> None:
        """vectors, others: (num, values), in half precision under autocast."""
        vectors, others = _float(vectors), None if others is None else _float(others)
        self.counts[fold] += len(vectors)
        if self._kept is not None and wide(vectors.shape[1]):
            self._kept.append((fold, vectors.clone(), None if others is None else others.clone()))
            if self.counts.sum() <= _FEW * vectors.shape[1]:
                return
        else:
            self._add(fold, vectors, others)
        for kept in self._kept or ():
            self._add(*kept)
        self._kept = None

    def add_products(self, fold: int, num: int, own: Tensor, cross: Tensor | None = None) -> None:
        """What `num` vectors make, of few values each."""
        self.counts[fold] += num
        self._sum(fold, own, cross)

    def averages(self, counts: Tensor | None = None) -> tuple[Moment, Tensor | None]:
        """(folds, values, values) and (folds, values, others' values) of the folds that were seen; where the first is a
        `Spanned`, the others' in the coordinates of its basis. counts: what to divide by, if not by vectors."""
        counts = self.counts if counts is None else counts
        folds = (self.counts > 0).nonzero()[:, 0].tolist()
        if self._kept:
            return self._spanned(folds, counts)
        owns, crosses = zip(*(self._sums[fold] for fold in folds), strict=True)
        return _stacked(owns, counts[folds]), None if crosses[0] is None else _stacked(crosses, counts[folds])

    def _spanned(self, folds: Sequence[int], counts: Tensor) -> tuple[Moment, Tensor | None]:
        assert self._kept
        parts = {fold: [some for some in self._kept if some[0] == fold] for fold in folds}
        vectors = [torch.cat([own for _, own, _ in some]).double() for some in parts.values()]
        own = Spanned.of(vectors)
        own = Spanned(own.basis, _stacked(list(own.inside), counts[list(folds)]))
        if self._kept[0][2] is None:
            return own, None
        others = [torch.cat([other for _, _, other in some if other is not None]) for some in parts.values()]
        crosses = [(X @ own.basis).T @ other.double() for X, other in zip(vectors, others, strict=True)]
        return own, _stacked(crosses, counts[list(folds)])

    def _add(self, fold: int, vectors: Tensor, others: Tensor | None) -> None:
        with torch.autocast(vectors.device.type, enabled=False):
            self._sum(fold, vectors.T @ vectors, None if others is None else vectors.T @ others)

    def _sum(self, fold: int, own: Tensor, cross: Tensor | None) -> None:
        own, cross = own.double(), None if cross is None else cross.double()
        if fold in self._sums:
            sums = self._sums[fold]
            own, cross = sums[0].add_(own), None if cross is None or sums[1] is None else sums[1].add_(cross)
        self._sums[fold] = own, cross


def _float(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _stacked(sums: Sequence[Tensor], counts: Tensor) -> Tensor:
    return torch.stack(list(sums)) / counts[:, None, None].to(sums[0].device)
