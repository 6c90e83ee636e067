"""What an error in layers costs, given how the layers are used.

The objective is ``sum_n tr (W_n - A_n)^T C_n (W_n - A_n) G_n`` for the approximations A_n, where C_n (rows, rows) is
the second moment of what member n multiplies by W_n (rows, cols_n), and G_n (cols_n, cols_n) that of the gradients that
come back to its outputs: the Kronecker-factored second-order change of the output (Grosse and Martens, arXiv
1602.01407). A moment may also be given as the one block M of a block-diagonal ``kron(I, M)``, or as `Spanned`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointsvd.decomposition.spanned import Moment, Spanned

RIDGE = 1e-6  # of the mean eigenvalue: enough to factor a moment that was measured; how far to trust it, `shrunk` says


def objective(
    Ws: Sequence[Tensor], Cs: Sequence[Moment], Gs: Sequence[Moment], approximations: Sequence[Tensor]
) -> float:
    """``sum_n tr (W_n - A_n)^T C_n (W_n - A_n) G_n``, without a ridge."""
    total = 0.0
    for W, C, G, A in zip(Ws, Cs, Gs, approximations, strict=True):
        total += _weighed((W - A).detach().double(), C.double(), G.double())
    return total


def _weighed(D: Tensor, C: Moment, G: Moment) -> float:
    """``tr D^T C D G``; of a spanned C without products as large as D where it has no rest."""
    if isinstance(C, Tensor):
        return float((times(C, D) * times(G, D.T).T).sum())
    seen = C.basis.T @ D
    outside = C.rest and C.rest * (float((D * times(G, D.T).T).sum()) - float((seen * times(G, seen.T).T).sum()))
    return float(((C.inside @ seen) * times(G, seen.T).T).sum()) + outside


def times(M: Moment, X: Tensor) -> Tensor:
    """``kron(I, M) X``, with the identity that fits the rows of X (rows, cols); just M X if M has as many."""
    return (M @ X.reshape(-1, len(M), X.shape[1])).reshape(X.shape)


def shrunk(folds: Moment) -> Moment:
    """What several estimates of one moment, (folds, n, n) from equally many images each, say about it together: their
    mean, drawn towards a multiple of the identity by the share of it that is noise, as their spread shows (Ledoit and
    Wolf, J. Multivariate Analysis 88, 2004, with folds for samples). Of one fold, whose spread is not known, itself."""
    mean, share = folds.mean(0), noise_share(folds)
    if isinstance(mean, Spanned):
        return (mean * (1 - share)).plus(share * mean.level())
    return mean + share * (_target(mean) - mean)


def noise_share(folds: Moment) -> float:
    """Of `shrunk`: how much of the way to the identity."""
    inside = folds.inside if isinstance(folds, Spanned) else folds
    mean, num = inside.mean(0), len(folds)
    energy = float(mean.flatten() @ mean.flatten())
    distance = energy - float(mean.trace()) ** 2 / folds.shape[-1]  # from the multiple of the identity
    spread = sum(float(fold.flatten() @ fold.flatten()) for fold in inside) - num * energy
    if num == 1 or distance <= 1e-12 * energy:
        return 0.0
    return min(max(spread, 0.0) / (num * (num - 1)) / distance, 1.0)


def _target(mean: Tensor) -> Tensor:
    return torch.eye(len(mean), dtype=mean.dtype, device=mean.device) * mean.diagonal().mean()


def level(C: Moment) -> Tensor:
    """Mean eigenvalue."""
    return C.level() if isinstance(C, Spanned) else C.diagonal().mean()


def with_ridge(C: Moment) -> Moment:
    """C plus a small multiple of the identity; the identity itself for a zero moment."""
    mean = level(C)
    ridge = RIDGE * mean if mean > 0 else 1.0
    if isinstance(C, Spanned):
        return C.plus(ridge)
    return C + torch.eye(len(C), dtype=C.dtype, device=C.device) * ridge


def root(C: Tensor) -> Tensor:
    """R, upper triangular, with ``R^T R = C`` of a symmetric positive definite matrix: its Cholesky factor, transposed.
    Where rounding has left eigenvalues below zero, as sums in single precision do, these are made positive."""
    L, failed = torch.linalg.cholesky_ex(C)
    if not failed:
        return L.T
    floor = max(1e-12, torch.finfo(C.dtype).eps)
    eigenvalues, Q = torch.linalg.eigh(C)
    return torch.linalg.qr((Q * eigenvalues.clamp_min(eigenvalues[-1] * floor).sqrt()).T).R


def unrooted(R: Tensor, X: Tensor) -> Tensor:
    """``kron(I, R)^-1 X``, with the identity that fits the rows of X (rows, cols)."""
    blocks = X.reshape(-1, len(R), X.shape[1]).transpose(0, 1)
    found = torch.linalg.solve_triangular(R, blocks.flatten(1), upper=True)
    return found.reshape(blocks.shape).transpose(0, 1).reshape(X.shape)
