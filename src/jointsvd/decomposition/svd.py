"""Truncated SVD and the three joint decompositions of a list of matrices.

Every function takes 2-D floating tensors of any dtype and device, computes in float64, and returns factors in the
dtype and on the device of its input. Equation numbers are those of Chen et al., arXiv 2107.04386.

Only the leading singular subspace of a stack of matrices is ever needed, so it is read off the Gram matrix of the
stack (its size does not grow with the number of members) instead of an SVD of the stack itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointsvd.decomposition.alternation import alternate
from jointsvd.decomposition.subspaces import leading_eigenvectors

NUM_ITERATIONS = 30  # K of the paper


def truncated_svd(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` approximation ``W ~ U V`` in the Frobenius norm (Eckart-Young).

    W: (rows, cols). Returns U (rows, rank), which carries the singular values, and V (rank, cols), whose rows are
    orthonormal. Raises ValueError for an empty, non-finite or non-floating W, or a rank outside 1..min(rows, cols).
    """
    Us, V = rjsvd([W], rank)
    return Us[0], V


def rjsvd(Ws: Sequence[Tensor], rank: int) -> tuple[list[Tensor], Tensor]:
    """Right joint SVD, ``W_n ~ U_n V`` with one V for all (eq. 1-6): the SVD of the W_n stacked vertically.

    Ws: N matrices (rows_n, cols). Returns N factors U_n (rows_n, rank) and V (rank, cols) with orthonormal rows.
    Raises ValueError for bad matrices or a rank outside 1..min(sum of rows, cols).
    """
    stack = torch.cat(_checked(Ws, shared_dim=1, name="rjsvd"))
    _check_rank(rank, min(stack.shape), "rank")
    if len(stack) < stack.shape[1]:  # the smaller Gram matrix gives the same subspace
        left = leading_eigenvectors(stack @ stack.T, rank)
        right = torch.linalg.qr(stack.T @ left).Q
    else:
        right = leading_eigenvectors(stack.T @ stack, rank)
    Us = (stack @ right).split([len(W) for W in Ws])
    return [_like(U, Ws[0]) for U in Us], _like(right.T, Ws[0])


def ljsvd(Ws: Sequence[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """Left joint SVD, ``W_n ~ U V_n`` with one U for all (eq. 7-10): the SVD of the W_n stacked side by side.

    Ws: N matrices (rows, cols_n). Returns U (rows, rank) with orthonormal columns and N factors V_n (rank, cols_n).
    Raises ValueError for bad matrices or a rank outside 1..min(rows, sum of columns).
    """
    _checked(Ws, shared_dim=0, name="ljsvd")
    Us, V = rjsvd([W.T for W in Ws], rank)
    return V.T.contiguous(), [U.T.contiguous() for U in Us]


def bijsvd(
    Ws: Sequence[Tensor], left_rank: int, right_rank: int, *, iterations: int = NUM_ITERATIONS
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """Bi-directional joint SVD, ``W_n ~ U_n V + U V_n`` (eq. 11-18), by alternation from zero.

    Each iteration fits (U_n, V) to ``W_n - U V_n``, then (U, V_n) to ``W_n - U_n V``; in each step the own factors that
    belong to the shared factor held are fitted along, which leaves no more error than holding them too. The first
    iteration solves both steps exactly, so the error starts no higher than RJSVD's at right_rank and LJSVD's at
    left_rank; later ones improve the subspace they find by a block Krylov step, which never raises the error.

    Ws: N matrices of one shape (rows, cols). Returns U_n (rows, right_rank), V (right_rank, cols), U (rows, left_rank)
    and V_n (left_rank, cols). With one rank 0 the result is LJSVD's or RJSVD's and the other factors are empty.
    Raises ValueError for bad matrices, ranks outside 0..min of the stacked sides, both ranks 0, or iterations < 1.
    """
    doubles = _checked(Ws, shared_dim=0, name="bijsvd")
    if len({W.shape for W in Ws}) > 1:
        raise ValueError(f"bijsvd: matrices must have one shape, got {[tuple(W.shape) for W in Ws]}")
    (rows, cols), num = Ws[0].shape, len(Ws)
    if left_rank == right_rank == 0:
        raise ValueError("bijsvd: left_rank and right_rank are both 0; give at least one of them")
    if iterations < 1:
        raise ValueError(f"bijsvd: iterations must be 1 or more, got {iterations}")
    if left_rank == 0:
        Us, V = rjsvd(Ws, right_rank)
        return Us, V, Ws[0].new_zeros(rows, 0), [W.new_zeros(0, cols) for W in Ws]
    if right_rank == 0:
        U, Vs = ljsvd(Ws, left_rank)
        return [W.new_zeros(rows, 0) for W in Ws], Ws[0].new_zeros(0, cols), U, Vs
    _check_rank(right_rank, min(num * rows, cols), "right_rank")
    _check_rank(left_rank, min(rows, num * cols), "left_rank")

    factors = alternate(torch.stack(doubles), left_rank, right_rank, iterations)
    own_u, V, U, own_v = (_like(factor, Ws[0]) for factor in factors)
    return list(own_u), V, U, list(own_v)


def _checked(Ws: Sequence[Tensor], *, shared_dim: int, name: str) -> list[Tensor]:
    """The matrices in float64, after checking that they can be decomposed jointly along `shared_dim`."""
    if not len(Ws):
        raise ValueError(f"{name}: needs at least one matrix")
    for W in Ws:
        if W.ndim != 2 or not W.numel():
            raise ValueError(f"{name}: needs non-empty 2-D matrices, got shape {tuple(W.shape)}")
        if not W.is_floating_point():
            raise ValueError(f"{name}: needs real floating-point matrices, got {W.dtype}")
        if not torch.isfinite(W).all():
            raise ValueError(f"{name}: a matrix holds NaN or infinite values")
    if len({W.shape[shared_dim] for W in Ws}) > 1:
        side = ("rows", "columns")[shared_dim]
        raise ValueError(f"{name}: all matrices need equally many {side}, got {[tuple(W.shape) for W in Ws]}")
    # Apple's GPUs have no float64
    return [(W.detach().cpu() if W.device.type == "mps" else W.detach()).double() for W in Ws]


def _check_rank(rank: int, largest: int, name: str) -> None:
    if not 1 <= rank <= largest:
        raise ValueError(f"{name} must be between 1 and {largest} for these matrices, got {rank}")


def _like(x: Tensor, reference: Tensor) -> Tensor:
    return x.to(reference.dtype).to(reference.device).contiguous()
