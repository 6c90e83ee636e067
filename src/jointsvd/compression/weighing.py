"""Layers as the planner sees them: each with its metrics, as all images and as all but a fold's show it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from jointsvd.compression.options import Layer
from jointsvd.compression.statistics import Statistics
from jointsvd.decomposition.metric import with_ridge
from jointsvd.decomposition.narrow import coordinates
from jointsvd.decomposition.spanned import Moment

Bring = tuple[Callable[[Moment], Tensor], Callable[[Moment], Tensor]]  # moments of inputs and of outputs, made dense


def weighed(layers: Sequence[Layer], statistics: Statistics) -> list[Layer]:
    """The layers with their metrics, which are 0 where changing a layer changes nothing."""
    metrics = [statistics.metric(layer.name) for layer in layers]
    alive = [all(moment.any() for moment in moments) for moments in metrics]
    alive = alive if any(alive) else [True] * len(layers)  # then nothing tells them apart
    weighed = []
    for layer, metric, lives in zip(layers, metrics, alive, strict=True):
        layer, bring = _narrowed(replace(layer, W=layer.W * lives), *metric)
        folds = [partial(_without_fold, layer, bring, statistics, fold) for fold in range(statistics.num_folds)]
        weighed.append(replace(_with_metric(layer, bring, *metric)[0], folds=folds))
    return weighed


def _narrowed(layer: Layer, C: Moment, G: Moment) -> tuple[Layer, Bring]:
    """The layer with W in the fewest coordinates, which are its own, and what brings its moments there."""
    wide = layer.W.double().cpu()
    W, of_inputs, _ = coordinates(wide, C.double().cpu())
    W_t, of_outputs, _ = coordinates(W.T, G.double().cpu())
    left, right = layer.left_side, layer.right_side
    left = left if len(W) == len(wide) else (*left, layer.name)
    right = right if len(W_t) == W.shape[1] else (*right, layer.name)
    narrow = replace(layer, W=W_t.T, shape=tuple(wide.shape), left_side=left, right_side=right)
    return narrow, (of_inputs, of_outputs)


def _without_fold(layer: Layer, bring: Bring, statistics: Statistics, fold: int) -> tuple[Layer, Tensor, Tensor]:
    """The layer as all images but a fold's show it, and the metrics that these show, in its units."""
    fitted, scales = _with_metric(layer, bring, *statistics.metric(layer.name, without=fold))
    moments = zip(bring, statistics.measured(layer.name, fold), scales, strict=True)
    C, G = (bring(moment.double().cpu()) / scale for bring, moment, scale in moments)
    return fitted, C, G


def _with_metric(layer: Layer, bring: Bring, C: Moment, G: Moment) -> tuple[Layer, tuple[Tensor, Tensor]]:
    """Metrics of mean 1, their scales in W, and these scales; all in float64 on the CPU."""
    metric = [bring(with_ridge(moment.double().cpu())) for bring, moment in zip(bring, (C, G), strict=True)]
    scales = metric[0].diagonal().mean(), metric[1].diagonal().mean()
    W = layer.W * (scales[0] * scales[1]).sqrt()
    return replace(layer, W=W, C=metric[0] / scales[0], G=metric[1] / scales[1]), scales
