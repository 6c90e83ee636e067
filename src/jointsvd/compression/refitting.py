"""Factors fitted again, each layer behind the layers compressed already, so that errors are made good, not passed on.

The dense network and the compressed one run side by side on the calibration images, as the two halves of one batch.
Where a layer receives x in the dense network and y behind the compressed layers, the best matrix is no longer W but
``A = E[y y^T]^-1 E[y x^T] W``, which takes y to the dense outputs. A is decomposed in W's place, and V is then fitted
to the dense outputs by least squares over the columns of its kernel (asymmetric reconstruction: Zhang et al., arXiv
1505.06798, there without a metric of the outputs and without sharing).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.compression.calibration import (
    Loader,
    Statistics,
    beside,
    images_of,
    measured_again,
    run_batches,
    strips,
)
from jointsvd.decomposition.metric import times, with_ridge
from jointsvd.decomposition.weighted import balanced, weighted_ljsvd
from jointsvd.network.layers import FactorPair, MatrixLayer, fold, is_matrix, unfold
from jointsvd.network.plan import Group, Plan
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import check_structure, replace

Fit = Callable[[Tensor, Tensor, Tensor], None]  # of a dense input, a compressed input and the dense outputs
_CHUNK = 64  # images whose strips are in memory at a time


@random_state_kept()
@torch.no_grad()
def refit(model: nn.Module, compressed: nn.Module, plan: Plan, statistics: Statistics, loader: Loader) -> nn.Module:
    """Fit the factors of `compressed` (`model` by `plan`) again, in place and in the order in which layers run, and
    measure its batch norms again. What shared factors span stays; a layer alone gets a new U and V. All are `balanced`
    in the end. Returns `compressed`.

    loader: as for `collect_statistics`; all its images pass at once. Layers that run more than once stay what they
    were, and so do groups with two branches or a Tucker-2. Raises ValueError as `collect_statistics` and
    `check_structure` do, for images of several sizes, and for a network that does not take the images of a batch one
    by one.
    """
    check_structure(compressed, plan)
    check_sizes(loader)
    images = torch.cat([beside(model, images_of(batch)) for batch in loader])
    fits = _fits(model, compressed, plan, statistics, images[:1])
    with bar(total=len(fits), desc="Fitting layers") as progress:
        twin, norms = _twin(model, compressed, fits, progress.update)
        with measured_again(norms) as tracked:
            for _, outputs in run_batches(twin, [torch.cat([images, images])], training=tracked):
                _check_independent(model, images[:2], outputs[:2])
    for group in plan.groups:
        pairs = [compressed.get_submodule(name) for name in group.members]
        if isinstance(group, Group) and all(isinstance(pair, FactorPair) for pair in pairs):
            _balance(cast(list[FactorPair], pairs), group)
    return compressed


def _twin(
    model: nn.Module, compressed: nn.Module, fits: Mapping[str, Fit], done: Callable[[], object]
) -> tuple[nn.Module, list[_BatchNorm]]:
    """Both networks side by side, and the batch norms of `compressed` in it. done: called after each fit."""
    twin, norms = deepcopy(model), []
    for name, module in list(twin.named_modules()):
        if isinstance(module, _BatchNorm):
            norms.append(cast(_BatchNorm, compressed.get_submodule(name)))
        elif not is_matrix(module) or is_matrix(compressed.get_submodule(name)):
            continue
        replace(twin, module, _Halves(module, compressed.get_submodule(name), fits.get(name), done))
    return twin, norms


def _check_independent(model: nn.Module, images: Tensor, outputs: Tensor) -> None:
    """Raises ValueError unless these are the outputs of `images` by themselves, too."""
    for _, expected in run_batches(model, [images]):
        if not torch.allclose(outputs, expected, rtol=0, atol=1e-2 * float(expected.abs().max())):
            raise ValueError("images of a batch affect each other in this network: compress with refit=False")


def check_sizes(loader: Loader) -> None:
    """Raises ValueError if `loader` is empty, or has images of several sizes."""
    sizes = {images_of(batch).shape[1:] for batch in loader}
    if len(sizes) != 1:
        problem = "the calibration loader is empty" if not sizes else "refit runs all images at once"
        raise ValueError(f"{problem}: give images of one size, or refit=False")


class _Halves(nn.Module):
    """The dense layer for the first half of a batch; what stands for it, fitted first, for the second."""

    def __init__(self, dense: nn.Module, compressed: nn.Module, fit: Fit | None, done: Callable[[], object]):
        super().__init__()
        self.dense, self.compressed, self.fit, self.done = dense, compressed, fit, done

    def forward(self, batch: Tensor) -> Tensor:
        x, y = batch.chunk(2)
        outputs = self.dense(x)
        if self.fit:
            self.fit(x, y, outputs)
            self.done()
        return torch.cat([outputs, self.compressed(y)])


def _fits(model: nn.Module, compressed: nn.Module, plan: Plan, statistics: Statistics, image: Tensor) -> dict[str, Fit]:
    """How to fit the layers that can be."""
    calls: Counter[str] = Counter()
    copy = deepcopy(model)
    for name, module in copy.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for _ in run_batches(copy, [image]):
        pass
    fits: dict[str, Fit] = {}
    for group in plan.groups:
        for name in group.members:
            pair = compressed.get_submodule(name)
            if isinstance(group, Group) and isinstance(pair, FactorPair) and calls[name] == 1:
                layer = cast(MatrixLayer, model.get_submodule(name))
                fits[name] = partial(_fit, layer, pair, group, statistics.metric(name)[1])
    return fits


def _fit(layer: MatrixLayer, pair: FactorPair, group: Group, G: Tensor, x: Tensor, y: Tensor, outputs: Tensor) -> None:
    """Give `pair` factors for its input y (N, ...), where `layer` turns x into `outputs`."""
    W = unfold(layer.weight).double()
    C, cross = _moments(partial(strips, layer), y, x)
    A = _solve(C, cross @ W, W)
    U, V = (unfold(part.weight).double() for part in (pair.u, pair.v))
    shared = len(group.members) > 1
    if shared and group.right_rank:
        GV = times(with_ridge(G), V.T)
        _set(pair.u, A @ GV @ torch.linalg.pinv(V @ GV, hermitian=True))
        return
    if not shared:
        U, (V,) = weighted_ljsvd([A], [C], [G], len(V))
        _set(pair.u, U)
    if layer.bias is not None:
        outputs = outputs - (layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias)
    C, cross = _moments(partial(strips, pair.v, axis=1), pair.u(y), outputs, partial(_positions, layer))
    columns = V.reshape(len(V), -1, len(G)).transpose(0, 1)  # (F2, rank, O)
    columns = _solve(C, cross, columns.flatten(0, 1)).reshape(columns.shape)
    _set(pair.v, columns.transpose(0, 1).flatten(1))


def _moments(
    view: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, x_view: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """``E[y y^T]`` and ``E[y x^T]`` over positions, of the two tensors as `view` and `x_view` (or `view`) lay them out
    (positions, values); an image's positions are summed, images averaged."""
    own, cross = torch.zeros(2, dtype=torch.float64, device=y.device)
    for one, other in zip(y.split(_CHUNK), x.split(_CHUNK), strict=True):
        rows, columns = view(one), (x_view or view)(other)
        own, cross = own + (rows.T @ rows).double(), cross + (rows.T @ columns).double()
    return own / len(y), cross / len(y)


def _positions(layer: MatrixLayer, outputs: Tensor) -> Tensor:
    """Outputs (N, O, H, W) or (N, ..., O) as (positions, O), in the order of horizontal strips."""
    return outputs.permute(0, 3, 2, 1).flatten(0, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(0, -2)


def _solve(C: Tensor, cross: Tensor, start: Tensor) -> Tensor:
    """``C^-1 cross``, drawn towards `start` where C has nothing to say."""
    ridged = with_ridge(C)
    return torch.linalg.solve(ridged, cross + (ridged - C) @ start)


def _balance(pairs: list[FactorPair], group: Group) -> None:
    """Give the factors of a group equal singular values; what they compute stays."""
    if group.left_rank:
        U, Vs = balanced(unfold(pairs[0].u.weight).double(), [unfold(pair.v.weight).double() for pair in pairs])
        Us = [U] * len(pairs)
    else:
        V, transposed = balanced(
            unfold(pairs[0].v.weight).double().T, [unfold(pair.u.weight).double().T for pair in pairs]
        )
        Us, Vs = [U.T for U in transposed], [V.T] * len(pairs)
    for pair, U, V in zip(pairs, Us, Vs, strict=True):
        _set(pair.u, U)
        _set(pair.v, V)


def _set(layer: MatrixLayer, W: Tensor) -> None:
    layer.weight.copy_(fold(W.to(layer.weight.dtype), layer.weight.shape))
