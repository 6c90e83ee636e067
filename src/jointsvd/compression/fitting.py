"""How the factors of one layer are fitted to what it receives behind compressed layers."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from jointsvd.compression.moments import FOLDS, Sums, wide
from jointsvd.compression.strips import strip_products, strips
from jointsvd.compression.walking import Seen
from jointsvd.decomposition.metric import level, noise_share, shrunk, times, with_ridge
from jointsvd.decomposition.spanned import Moment, Spanned
from jointsvd.decomposition.weighted import weighted_ljsvd
from jointsvd.network.layers import FactorPair, MatrixLayer, fold, unfold
from jointsvd.network.plan import Group

Step = Callable[["Behind", FactorPair, list[int]], None]  # sets weights, fitted to some folds
_CHUNK = 64  # images whose strips are in memory at a time


@dataclass(frozen=True)
class Behind:
    """A dense layer, the metric G of its outputs, and what it meets, in parts of the images: x (N, ...), y in place of
    x behind compressed layers, and its outputs in the dense network. All parts but the last are of a multiple of FOLDS
    images. weight: that x meets, which is the layer's own where y has as many channels as x."""

    layer: MatrixLayer
    weight: Tensor
    G: Moment
    seen: Seen

    @property
    def folds(self) -> list[int]:
        return list(range(min(FOLDS, self.seen.num)))

    @cached_property
    def moments(self) -> tuple[Moment, Tensor]:
        """Of the strips of y, and of these with those of x, by folds; or with what W makes of x, for a `wide` layer."""
        layer, W = self.layer, unfold(self.weight)
        if wide(len(W)):
            return self.sums(self.folds, lambda x, y, outputs: (strips(layer, y), strips(layer, x) @ W))

        def add(sums: Sums, fold: int, x: Tensor, y: Tensor, outputs: Tensor) -> None:
            sums.add_products(fold, *strip_products(layer, y, x))

        return self._added(self.folds, add)

    def targets(self, folds: list[int]) -> Tensor:
        """``E[y x^T] W`` of some folds, in the coordinates of the basis where the moment of y is `Spanned`."""
        cross, W = self.moments[1][folds].mean(0), unfold(self.weight)
        return cross if wide(len(W)) else cross @ W.double()

    def sums(self, folds: list[int], view: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Moment, Tensor]:
        """``E[a a^T]`` and ``E[a b^T]`` over positions, (folds, ...) each, of what `view` makes, (positions, values),
        of x, y and outputs; an image's positions are summed, a fold's images averaged."""
        return self._added(folds, lambda sums, fold, *parts: sums.add(fold, *view(*parts)))

    def _added(self, folds: list[int], add: Callable[..., None]) -> tuple[Moment, Tensor]:
        """add: brings `Sums`, of a fold, what some of x, y and outputs make."""
        sums, images = Sums(), torch.zeros(FOLDS, dtype=torch.int64)
        for part in self._parts():
            for number in folds:
                for some in zip(*(tensor[number :: len(self.folds)].split(_CHUNK) for tensor in part), strict=True):
                    if len(some[0]):
                        add(sums, number, *some)
                        images[number] += len(some[0])
        own, cross = sums.averages(images)
        assert cross is not None
        return own, cross

    def _parts(self) -> Iterator[tuple[Tensor, ...]]:
        for part in self.seen:
            yield tuple(tensor.to(self.layer.weight.dtype) for tensor in part)  # another under autocast

    def error(self, pair: FactorPair) -> float:
        """Of what stands for the layer, on the last fold."""
        total, tried = 0.0, slice(self.folds[-1], None, len(self.folds))
        for _, y, outputs in self._parts():
            if not len(y[tried]):
                continue  # the last part may be shorter than a round of the folds
            missed = outputs[tried] - pair(y[tried])
            rows = (missed.movedim(1, -1) if isinstance(self.layer, nn.Conv2d) else missed).flatten(0, -2)
            G, rows = (self.G, rows.double()) if isinstance(self.G, Spanned) else (self.G.to(rows.dtype), rows)
            total += float((rows * times(G, rows.T).T).sum(dtype=torch.float64))
        return total


def fit(behind: Behind, pair: FactorPair, trial: FactorPair, group: Group) -> None:
    """Give `pair` factors for its input, step by step. Each step is tried first on `trial`, factors that the last fold
    did not shape: fitted to the other folds, it must bring the outputs of the last one closer."""
    if len(behind.folds) < 2:
        return
    kept, error = [], behind.error(trial)
    for step in _steps(len(group.members) > 1, bool(group.right_rank)):
        before = deepcopy(trial.state_dict())
        step(behind, trial, behind.folds[:-1])
        if (found := behind.error(trial)) < error:
            error = found
            kept.append(step)
        else:
            trial.load_state_dict(before)
    for step in kept:
        step(behind, pair, behind.folds)


def _steps(shared: bool, right: bool) -> list[Step]:
    """What can be fitted: what a group shares stays."""
    if not shared:
        return [_both, _second]
    return [_first] if right else [_second]


def _both(behind: Behind, pair: FactorPair, folds: list[int]) -> None:
    """U and V of ``A = E[y y^T]^-1 E[y x^T] W``, in the metric of y."""
    C, W = behind.moments[0][folds], unfold(behind.layer.weight).double()
    U, (V,) = weighted_ljsvd([_solve(C, behind.targets(folds), W)], [shrunk(C)], [behind.G], pair.ranks[0])
    set_weight(pair.u, U)
    set_weight(pair.v, V)


def _first(behind: Behind, pair: FactorPair, folds: list[int]) -> None:
    """U of the same A, for the V there is."""
    C, (W, V) = behind.moments[0][folds], (unfold(x).double() for x in (behind.layer.weight, pair.v.weight))
    GV = times(with_ridge(behind.G), V.T)
    A = _solve(C, behind.targets(folds), W)
    set_weight(pair.u, A @ GV @ torch.linalg.pinv(V @ GV, hermitian=True))


def _second(behind: Behind, pair: FactorPair, folds: list[int]) -> None:
    """V by least squares over the columns of its kernel, for the U there is."""
    layer, V = behind.layer, unfold(pair.v.weight).double()
    bias: Tensor | float = 0.0
    if layer.bias is not None:
        bias = layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias

    def view(x: Tensor, y: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return strips(pair.v, pair.u(y), axis=1), _positions(layer, outputs - bias)

    C, cross = behind.sums(folds, view)
    columns = V.reshape(len(V), -1, len(behind.G)).transpose(0, 1)  # (F2, rank, O)
    found = _solve(C, cross.mean(0), columns.flatten(0, 1)).reshape(columns.shape)
    set_weight(pair.v, found.transpose(0, 1).flatten(1))


def _positions(layer: MatrixLayer, outputs: Tensor) -> Tensor:
    """Outputs (N, O, H, W) or (N, ..., O) as (positions, O), in the order of horizontal strips."""
    return outputs.permute(0, 3, 2, 1).flatten(0, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(0, -2)


def _solve(C: Moment, cross: Tensor, start: Tensor) -> Tensor:
    """``C^-1 cross``, drawn towards `start` as much as the folds of C (folds, n, n) disagree (`shrunk`)."""
    mean, share = C.mean(0), min(noise_share(C), 0.99)
    ridge = share / (1 - share) * level(with_ridge(mean)) + level(with_ridge(mean)) - level(mean)
    if isinstance(mean, Spanned):  # in all other directions nothing was seen, and `start` stays
        seen = mean.basis.T @ start
        return start + mean.basis @ (_ridged(mean.inside, ridge, cross, seen) - seen)
    return _ridged(mean, ridge, cross, start)


def _ridged(C: Tensor, ridge: Tensor, cross: Tensor, start: Tensor) -> Tensor:
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    L, failed = torch.linalg.cholesky_ex(C + ridge * eye)
    if failed:
        return torch.linalg.solve(C + ridge * eye, cross + ridge * start)
    return torch.cholesky_solve(cross + ridge * start, L)


def set_weight(layer: MatrixLayer, W: Tensor) -> None:
    layer.weight.copy_(fold(W.to(layer.weight.dtype), layer.weight.shape))
