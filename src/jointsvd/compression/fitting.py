"""How the factors of one layer are fitted to what it receives behind compressed layers."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from jointsvd.compression.statistics import FOLDS, strips
from jointsvd.decomposition.metric import noise_share, shrunk, times, with_ridge
from jointsvd.decomposition.weighted import weighted_ljsvd
from jointsvd.network.layers import FactorPair, MatrixLayer, fold, unfold
from jointsvd.network.plan import Group

Step = Callable[["Behind", FactorPair, list[int]], None]  # sets weights, fitted to some folds
_CHUNK = 64  # images whose strips are in memory at a time


@dataclass(frozen=True)
class Behind:
    """A dense layer, the metric G of its outputs, and what it meets: x (N, ...) and its outputs in the dense network, y
    in place of x behind compressed layers."""

    layer: MatrixLayer
    G: Tensor
    x: Tensor
    y: Tensor
    outputs: Tensor

    @property
    def folds(self) -> list[int]:
        return list(range(min(FOLDS, len(self.y))))

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Of the strips of y, and of these with those of x, by folds."""
        return _moments(partial(strips, self.layer), self.y, self.x)

    def error(self, pair: FactorPair) -> float:
        """Of what stands for the layer, on the last fold."""
        tried = slice(self.folds[-1], None, len(self.folds))
        missed = self.outputs[tried] - pair(self.y[tried])
        rows = missed.movedim(1, -1) if isinstance(self.layer, nn.Conv2d) else missed
        return float(((rows.double() @ self.G) * rows).sum())


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
    C, cross = (moment[folds] for moment in behind.moments)
    W = unfold(behind.layer.weight).double()
    U, (V,) = weighted_ljsvd([_solve(C, cross.mean(0) @ W, W)], [shrunk(C)], [behind.G], pair.ranks[0])
    set_weight(pair.u, U)
    set_weight(pair.v, V)


def _first(behind: Behind, pair: FactorPair, folds: list[int]) -> None:
    """U of the same A, for the V there is."""
    C, cross = (moment[folds] for moment in behind.moments)
    W, V = (unfold(weight).double() for weight in (behind.layer.weight, pair.v.weight))
    GV = times(with_ridge(behind.G), V.T)
    set_weight(pair.u, _solve(C, cross.mean(0) @ W, W) @ GV @ torch.linalg.pinv(V @ GV, hermitian=True))


def _second(behind: Behind, pair: FactorPair, folds: list[int]) -> None:
    """V by least squares over the columns of its kernel, for the U there is."""
    layer, outputs, V = behind.layer, behind.outputs, unfold(pair.v.weight).double()
    if layer.bias is not None:
        outputs = outputs - (layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias)
    view = partial(strips, pair.v, axis=1)
    C, cross = (part[folds] for part in _moments(view, pair.u(behind.y), outputs, partial(_positions, layer)))
    columns = V.reshape(len(V), -1, len(behind.G)).transpose(0, 1)  # (F2, rank, O)
    found = _solve(C, cross.mean(0), columns.flatten(0, 1)).reshape(columns.shape)
    set_weight(pair.v, found.transpose(0, 1).flatten(1))


def _moments(
    view: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, x_view: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """``E[y y^T]`` and ``E[y x^T]`` over positions, (folds, ...) each, of the two tensors as `view` and `x_view` (or
    `view`) lay them out (positions, values); an image's positions are summed, a fold's images averaged."""
    num = min(FOLDS, len(y))
    found = []
    for first in range(num):
        ours, theirs = y[first::num], x[first::num]
        own, cross = torch.zeros(2, dtype=torch.float64, device=y.device)
        for one, other in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
            rows, columns = view(one), (x_view or view)(other)
            own, cross = own + (rows.T @ rows).double(), cross + (rows.T @ columns).double()
        found.append((own / len(ours), cross / len(ours)))
    owns, crosses = zip(*found, strict=True)
    return torch.stack(owns), torch.stack(crosses)


def _positions(layer: MatrixLayer, outputs: Tensor) -> Tensor:
    """Outputs (N, O, H, W) or (N, ..., O) as (positions, O), in the order of horizontal strips."""
    return outputs.permute(0, 3, 2, 1).flatten(0, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(0, -2)


def _solve(C: Tensor, cross: Tensor, start: Tensor) -> Tensor:
    """``C^-1 cross``, drawn towards `start` as much as the folds of C (folds, n, n) disagree (`shrunk`)."""
    mean, share = with_ridge(C.mean(0)), min(noise_share(C), 0.99)
    ridge = share / (1 - share) * mean.diagonal().mean() + (mean - C.mean(0)).diagonal().mean()
    ridged = C.mean(0) + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    return torch.linalg.solve(ridged, cross + ridge * start)


def set_weight(layer: MatrixLayer, W: Tensor) -> None:
    layer.weight.copy_(fold(W.to(layer.weight.dtype), layer.weight.shape))
