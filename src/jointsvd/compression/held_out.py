"""Errors on images that did not shape the factors: each fold of the calibration images tries the factors of the others.

An error measured on the images that shaped the factors is no estimate where these are few: 128 images cannot tell the
1,280 inputs of a classifier apart.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jointsvd.compression.options import Kind, Layer, Option, cheap_side, half, metric_of
from jointsvd.decomposition.metric import root, times, unrooted
from jointsvd.decomposition.subspaces import LARGE, leading_eigenvectors


def held_out(option: Option) -> Option:
    """The option with the errors of its ranks, up to the largest that saves parameters, as the folds find them; as it
    is for layers that only one fold has seen."""
    folds = range(len(option.layers[0].folds))
    largest = option.largest_rank(1)
    if len(folds) < 2 or not largest:
        return option
    side = cheap_side(option.layers[0]) if option.kind == "alone" else option.kind
    errors = [_errors([layer.folds[fold]() for layer in option.layers], side, largest) for fold in folds]
    return replace(option, errors=torch.stack(errors).mean(0).clamp_min(0))


def _errors(members: Sequence[tuple[Layer, Tensor, Tensor]], side: Kind, largest: int) -> Tensor:
    """Of ranks 0 to `largest`: the factors of the layers, tried on the metrics beside them; of large layers in float32.

    With R^T R the metric of the side and Q the leading eigenvectors of the Gram matrix there, ``W ~ B Y`` with
    ``B = R^-1 Q`` and ``Y = Q^T R W``; a smaller rank has the first columns and rows of these.
    """
    if len(metric_of(members[0][0], side)) >= LARGE:
        members = [_single(*member) for member in members]
    R = root(torch.stack([metric_of(layer, side) for layer, _, _ in members]).mean(0))
    halves = [half(layer, side, R) for layer, _, _ in members]
    Q = leading_eigenvectors(sum(A.T @ times(M, A) for A, M in halves), largest)  # type: ignore[arg-type]
    B = unrooted(R, Q)
    errors = Q.new_zeros(largest + 1)
    for (layer, C, G), (A, _) in zip(members, halves, strict=True):
        W, near, far = (layer.W, C, G) if side == "left" else (layer.W.T, G, C)
        errors += _tried(W, B, (A @ Q).T, near, far)
    return errors.double()


def _single(layer: Layer, C: Tensor, G: Tensor) -> tuple[Layer, Tensor, Tensor]:
    """In float32."""
    found = replace(layer, W=layer.W.float(), C=layer.C.float(), G=layer.G.float())
    return found, C.float(), G.float()


def _tried(W: Tensor, B: Tensor, Y: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """``tr D^T near D far`` of ``D = W - B_r Y_r`` for all ranks r, added up from the products of single ranks."""
    near_B, Y_far = times(near, B), times(far, Y.T).T
    total = (times(near, W) * times(far, W.T).T).sum()
    crossed = ((near_B.T @ W) * Y_far).sum(1)  # each rank with W
    among = ((B.T @ near_B) * (Y_far @ Y.T)).cumsum(0).cumsum(1).diagonal()  # the first ranks with each other
    return torch.cat([total[None], total - 2 * crossed.cumsum(0) + among])
