"""How the factors of one layer are fitted to what it receives behind compressed layers."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from jointsvd.compression.statistics import FOLDS, strips
from jointsvd.decomposition.metric import noise_share, shrunk, times, with_ridge
from jointsvd.decomposition.weighted import weighted_ljsvd
from jointsvd.network.layers import FactorPair, MatrixLayer, fold, unfold
from jointsvd.network.plan import Group

Step = Callable[[list[int]], None]  # sets weights, fitted to some folds
_CHUNK = 64  # images whose strips are in memory at a time


def fit(layer: MatrixLayer, pair: FactorPair, group: Group, G: Tensor, x: Tensor, y: Tensor, outputs: Tensor) -> None:
    """Give `pair` factors for its input y (N, ...), where `layer` turns x into `outputs`: step by step, each kept where
    it brings the outputs of the last fold closer when fitted to the other ones, and then fitted to all."""
    folds = list(range(min(FOLDS, len(y))))
    if len(folds) < 2:
        return
    tried = slice(folds[-1], None, len(folds))

    def error() -> float:
        missed = outputs[tried] - pair(y[tried])
        rows = missed.movedim(1, -1) if isinstance(layer, nn.Conv2d) else missed
        return float(((rows.double() @ G) * rows).sum())

    for make_step in _steps(len(group.members) > 1, bool(group.right_rank)):
        step = make_step(layer, pair, G, x, y, outputs)
        before, weights = error(), [part.weight.clone() for part in (pair.u, pair.v)]
        step(folds[:-1])
        if error() < before:
            step(folds)
        else:
            pair.u.weight.copy_(weights[0])
            pair.v.weight.copy_(weights[1])


def _steps(shared: bool, right: bool) -> list[Callable[..., Step]]:
    """What can be fitted: what a group shares stays."""
    if not shared:
        return [_both, _second]
    return [_first] if right else [_second]


def _both(layer: MatrixLayer, pair: FactorPair, G: Tensor, x: Tensor, y: Tensor, outputs: Tensor) -> Step:
    """U and V of ``A = E[y y^T]^-1 E[y x^T] W``, in the metric of y."""
    W, moments = unfold(layer.weight).double(), _moments(partial(strips, layer), y, x)
    rank = pair.ranks[0]

    def step(folds: list[int]) -> None:
        C, cross = (moment[folds] for moment in moments)
        U, (V,) = weighted_ljsvd([_solve(C, cross.mean(0) @ W, W)], [shrunk(C)], [G], rank)
        set_weight(pair.u, U)
        set_weight(pair.v, V)

    return step


def _first(layer: MatrixLayer, pair: FactorPair, G: Tensor, x: Tensor, y: Tensor, outputs: Tensor) -> Step:
    """U of the same A, for the V there is."""
    W, moments = unfold(layer.weight).double(), _moments(partial(strips, layer), y, x)
    V = unfold(pair.v.weight).double()
    GV = times(with_ridge(G), V.T)
    projected = GV @ torch.linalg.pinv(V @ GV, hermitian=True)

    def step(folds: list[int]) -> None:
        C, cross = (moment[folds] for moment in moments)
        set_weight(pair.u, _solve(C, cross.mean(0) @ W, W) @ projected)

    return step


def _second(layer: MatrixLayer, pair: FactorPair, G: Tensor, x: Tensor, y: Tensor, outputs: Tensor) -> Step:
    """V by least squares over the columns of its kernel, for the U there is."""
    V = unfold(pair.v.weight).double()
    if layer.bias is not None:
        outputs = outputs - (layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias)
    moments = _moments(partial(strips, pair.v, axis=1), pair.u(y), outputs, partial(_positions, layer))
    columns = V.reshape(len(V), -1, len(G)).transpose(0, 1)  # (F2, rank, O)

    def step(folds: list[int]) -> None:
        C, cross = (moment[folds] for moment in moments)
        found = _solve(C, cross.mean(0), columns.flatten(0, 1)).reshape(columns.shape)
        set_weight(pair.v, found.transpose(0, 1).flatten(1))

    return step


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
