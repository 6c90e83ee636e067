"""Matrices that meet a `Spanned` moment, in coordinates in which both are small and dense.

A matrix W of d rows has a part in the n directions of the moment's basis, and a rest that lies in as many directions as
W has columns, where the moment is a multiple of the identity. In these n + cols coordinates nothing is left out.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from jointsvd.decomposition.metric import root, unrooted
from jointsvd.decomposition.spanned import Moment, Spanned

_ROUNDING = 1e-14  # of the mean eigenvalue: keeps the rest of W invertible where W has no rest in some directions


class _Narrow:
    """A matrix in coordinates in which moments over one basis are small.

    W: (n + cols, cols) in place of (d, cols). `widened` brings a left factor back.
    """

    def __init__(self, W: Tensor, basis: Tensor):
        self._whole, self._basis = W, basis
        self._seen = basis.T @ W
        rest = W.T @ W - self._seen.T @ self._seen
        rest.diagonal().add_(float(rest.diagonal().mean()) * _ROUNDING or 1.0)
        self._root = root(rest)
        self.W = torch.cat([self._seen, self._root])

    def widened(self, U: Tensor) -> Tensor:
        """U (n + cols, rank) as (d, rank)."""
        inside, outside = U.split([len(self._seen), len(U) - len(self._seen)])
        outside = unrooted(self._root, outside)
        return self._whole @ outside + self._basis @ (inside - self._seen @ outside)


def _brought(cols: int, C: Moment) -> Tensor:
    """A moment over the basis in these coordinates, (n + cols, n + cols)."""
    assert isinstance(C, Spanned)
    outside = torch.eye(cols, dtype=C.inside.dtype, device=C.inside.device) * C.rest
    return torch.block_diag(C.inside, outside)


def coordinates(W: Tensor, C: Moment) -> tuple[Tensor, Callable[[Moment], Tensor], Callable[[Tensor], Tensor]]:
    """W in the fewest coordinates in which it and C are dense, what brings C and moments like it there, and what brings
    a left factor (rows, rank) back."""
    if not isinstance(C, Spanned) or len(C) < len(W):  # one block of several
        return W, dense_moment, lambda U: U
    if C.basis.shape[1] + W.shape[1] >= len(W):
        return W, dense_moment, lambda U: U
    narrow = _Narrow(W, C.basis)
    return narrow.W, partial(_brought, W.shape[1]), narrow.widened


def narrowed(W: Tensor, C: Moment) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """`coordinates`, with C brought there."""
    W, bring, widen = coordinates(W, C)
    return W, bring(C), widen


def dense_moment(C: Moment) -> Tensor:
    """(n, n), also where it is spanned by few."""
    return C.dense() if isinstance(C, Spanned) else C
