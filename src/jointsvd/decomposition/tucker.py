"""Tucker-2 factors of conv weights, alone and coupled; the tensor methods that the paper compares itself with.

A weight is taken as (F1, F2, I, O). Its factors (A, core, B) with ranks (r_i, r_o) have shapes (I, r_i),
(F1, F2, r_i, r_o) and (r_o, O): a 1x1 conv, an F1 x F2 conv and a 1x1 conv. Functions compute in float64 and return
factors in the dtype and on the device of their input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointsvd.decomposition.subspaces import improved_subspace, leading_eigenvectors
from jointsvd.decomposition.svd import NUM_ITERATIONS

TuckerFactors = tuple[Tensor, Tensor, Tensor]
Start = tuple[Tensor, Tensor]


def tucker2(W: Tensor, ranks: tuple[int, int]) -> TuckerFactors:
    """Tucker-2 as the paper's authors compute it, by two truncated SVDs one after the other.

    First of the (F1*F2*I) x O matrix to rank r_o, singular values kept in the right factor B; then of the left factor,
    reordered to I x (F1*F2*r_o), to rank r_i. The second one does not see the singular values, so the error is a little
    above that of a truncated HOSVD.

    W: (F1, F2, I, O). Returns A (I, r_i), core (F1, F2, r_i, r_o), B (r_o, O).
    Raises ValueError for a W that is not 4-D, finite and floating, or ranks outside 1..(I, O).
    """
    _check([W], [ranks])
    return _like(_tucker2(W.detach().double(), ranks, None)[0], W)


def coupled_tucker2(
    Ws: Sequence[Tensor],
    own_ranks: tuple[int, int],
    shared_ranks: tuple[int, int],
    *,
    iterations: int = NUM_ITERATIONS,
) -> tuple[list[TuckerFactors], TuckerFactors]:
    """NC_CTD: ``W_n ~ own_n + shared``, each a Tucker-2, by alternation from shared = 0.

    Each iteration fits own_n to ``W_n - shared``, then shared to the mean of ``W_n - own_n``. (In the authors' code the
    own parts see that mean before it is cut to its ranks; here they see what is shared.) As `tucker2` is no best
    approximation, the error may rise a little between iterations.

    Ws: N weights of one shape (F1, F2, I, O). Returns the factors of each own part and those of the shared one.
    Raises ValueError for bad weights, weights of several shapes, ranks outside 1..(I, O), or iterations < 1.
    """
    _check(Ws, [own_ranks, shared_ranks])
    if iterations < 1:
        raise ValueError(f"coupled_tucker2: iterations must be 1 or more, got {iterations}")
    W = torch.stack([W.detach().double() for W in Ws])
    shared_part = torch.zeros_like(W[0])
    own_starts: list[Start | None] = [None] * len(Ws)
    shared_start: Start | None = None
    for _ in range(iterations):
        fits = [_tucker2(W_n - shared_part, own_ranks, start) for W_n, start in zip(W, own_starts, strict=True)]
        own, own_starts = [factors for factors, _ in fits], [subspaces for _, subspaces in fits]
        residual = W.mean(0) - torch.stack([tucker2_product(*factors) for factors in own]).mean(0)
        shared, shared_start = _tucker2(residual, shared_ranks, shared_start)
        shared_part = tucker2_product(*shared)
    return [_like(factors, Ws[0]) for factors in own], _like(shared, Ws[0])


def tucker2_product(A: Tensor, core: Tensor, B: Tensor) -> Tensor:
    """The weight (F1, F2, I, O) that the factors stand for."""
    return A @ core @ B


def _tucker2(W: Tensor, ranks: tuple[int, int], start: Start | None) -> tuple[TuckerFactors, Start]:
    """Factors of W and the subspaces (right, A) they rest on; `start`, those of a similar W, saves work."""
    in_rank, out_rank = ranks
    height, width, in_channels, _ = W.shape
    matrix = W.reshape(-1, W.shape[3])
    right = _leading_subspace(matrix, out_rank, start[0] if start else None)
    left = matrix @ right
    norms = left.norm(dim=0)  # the singular values
    left = left / norms.clamp_min(norms.max() * 1e-12 + torch.finfo(W.dtype).tiny)
    left = left.reshape(height, width, in_channels, out_rank)
    A = _leading_subspace(left.movedim(2, 3).reshape(-1, in_channels), in_rank, start[1] if start else None)
    return (A, A.T @ left, norms[:, None] * right.T), (right, A)


def _leading_subspace(matrix: Tensor, rank: int, start: Tensor | None) -> Tensor:
    """Leading right singular vectors (cols, rank) of a matrix (rows, cols); with `start`, an improvement of it."""
    if start is None or 2 * rank > matrix.shape[1]:
        return leading_eigenvectors(matrix.T @ matrix, rank)
    return improved_subspace(lambda X: matrix.T @ (matrix @ X), start)


def _check(Ws: Sequence[Tensor], all_ranks: Sequence[tuple[int, int]]) -> None:
    if not len(Ws):
        raise ValueError("coupled_tucker2: needs at least one weight")
    for W in Ws:
        if W.ndim != 4 or not W.numel() or not W.is_floating_point():
            raise ValueError(f"tucker2: needs weights (F1, F2, I, O) of floats, got {tuple(W.shape)} of {W.dtype}")
        if not torch.isfinite(W).all():
            raise ValueError("tucker2: a weight holds NaN or infinite values")
    if len({W.shape for W in Ws}) > 1:
        raise ValueError(f"coupled_tucker2: weights must have one shape, got {[tuple(W.shape) for W in Ws]}")
    largest = tuple(Ws[0].shape[2:])
    for ranks in all_ranks:
        if not all(1 <= rank <= size for rank, size in zip(ranks, largest, strict=True)):
            raise ValueError(f"tucker2: ranks (r_i, r_o) must be between 1 and {largest}, got {tuple(ranks)}")


def _like(factors: TuckerFactors, reference: Tensor) -> TuckerFactors:
    A, core, B = (factor.to(reference.dtype).to(reference.device).contiguous() for factor in factors)
    return A, core, B
