"""What a change of a network's output costs: for logits the Kullback-Leibler divergence of the predictions, for numbers
that of normal distributions around them, else the change of a function of the user's."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["classes", "binary", "gaussian"]
KINDS = ("classes", "binary", "gaussian")
_SUM = 1e-3  # by which probabilities may miss 1


def checked(loss: Any) -> Kind | Callable[[Any], Tensor]:
    """Raises ValueError for what is no loss."""
    if loss not in KINDS and not callable(loss):
        raise ValueError(
            f"loss is one of {', '.join(KINDS)}, or a function of the output that gives a scalar; got {loss!r}"
        )
    return loss


def check(kind: Kind, output: Tensor) -> None:
    """Raises ValueError for an output (N, ...) that the loss is not for."""
    if kind == "classes" and (output.ndim < 2 or output.shape[1] < 2):
        raise ValueError(
            f"calibration needs two or more logits in dimension 1, the output is {tuple(output.shape)}: give "
            'loss="gaussian" for numbers, embeddings or images, loss="binary" for logits of masks'
        )
    if kind == "binary" and bool(((output >= 0) & (output <= 1)).all()):
        raise ValueError(
            'loss="binary" needs logits, the output lies between 0 and 1: give output=lambda y: y.logit(1e-6) if it is '
            "a probability"
        )


def rows(kind: Kind, output: Tensor) -> Tensor:
    """The output (N, ...) as (predictions, values), those of an image together: for classes logits, also where the
    network ends in a softmax, whose logarithm they are up to a constant."""
    if kind != "classes":
        return output.flatten(1)
    logits = output.movedim(1, -1).reshape(-1, output.shape[1])
    sums = logits.detach().sum(1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < _SUM).all()):
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return logits


def sketch(kind: Kind, rows: Tensor, e: Tensor) -> Tensor:
    """H^1/2 e for each row, H being the Fisher information of the prediction (for numbers: 1) and e normal noise.

    Of classes, with H = diag(p) - p p^T, a root is (I - p 1^T) diag(p)^1/2.
    """
    if kind == "gaussian":
        return e
    if kind == "binary":
        p = rows.sigmoid()
        return (p * (1 - p)).sqrt() * e
    p = rows.softmax(-1)
    drawn = p.sqrt() * e
    return drawn - p * drawn.sum(-1, keepdim=True)


def divergence(kind: Kind, dense: Tensor, other: Tensor) -> Tensor:
    """Summed over predictions, of `rows` of two networks; of numbers in the unit that they have."""
    if kind == "gaussian":
        return (dense - other).square().sum() / 2
    if kind == "binary":
        p = dense.sigmoid()
        own, crossed = (F.binary_cross_entropy_with_logits(x, p, reduction="sum") for x in (dense, other))
        return crossed - own
    log_p, log_q = dense.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


def same(kind: Kind, dense: Tensor, other: Tensor) -> float | None:
    """Which share of the predictions is one; None for numbers."""
    if kind == "gaussian":
        return None
    found = [(x > 0) if kind == "binary" else x.argmax(-1) for x in (dense, other)]
    return float((found[0] == found[1]).double().mean())
