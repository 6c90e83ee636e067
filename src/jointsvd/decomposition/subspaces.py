"""Leading invariant subspaces of symmetric matrices: exact, nearly so in half the time, or better than a given one."""

from collections.abc import Callable

import torch
from torch import Tensor

_KRYLOV_BLOCKS = 2
LARGE = 256  # from here on, eigenvectors in float32 take half the time


def leading_eigenvectors(S: Tensor, rank: int) -> Tensor:
    """Orthonormal basis (n, rank) of the leading invariant subspace of the symmetric S (n, n), leading vector first."""
    return torch.linalg.eigh(S).eigenvectors[:, len(S) - rank :].flip(1)


def nearly_leading(S: Tensor, rank: int) -> Tensor:
    """As `leading_eigenvectors`, but a large S is decomposed in float32: the basis, in float64, then misses about 1e-12
    of the trace that it captures, which one step of `improved_subspace` takes away."""
    if len(S) < LARGE:
        return leading_eigenvectors(S, rank)
    unit = S.diagonal().abs().max().clamp_min(torch.finfo(S.dtype).tiny)  # float32 has a smaller range
    return torch.linalg.qr(leading_eigenvectors((S / unit).float(), rank).to(S.dtype)).Q


def improved_subspace(multiply: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Rayleigh-Ritz for the leading subspace on the block Krylov space of `start` (n, rank), orthonormal.

    multiply: X -> S X for a symmetric positive semidefinite S. The trace that the result captures is never below that
    of `start`, because `start` lies in the space searched.
    """
    blocks = [start]
    for _ in range(_KRYLOV_BLOCKS - 1):
        blocks.append(torch.linalg.qr(multiply(blocks[-1])).Q)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    return basis @ leading_eigenvectors(basis.T @ multiply(basis), start.shape[1])


def leading_subspace(S: Tensor, rank: int) -> Tensor:
    """As `leading_eigenvectors`, to rounding; of a small part of a large S in half the time."""
    if len(S) < LARGE or 8 * rank > len(S):
        return leading_eigenvectors(S, rank)
    return improved_subspace(lambda X: S @ X, nearly_leading(S, rank))
