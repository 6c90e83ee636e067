"""Joint decompositions that make the error of layers' outputs small, given second moments of their inputs.

The objective is ``sum_n tr (W_n - A_n)^T C_n (W_n - A_n)`` for the approximations A_n, where C_n (rows, rows) is the
second moment of what member n multiplies by W_n (rows, cols_n): its squared output error. With C_n the identity these
are `rjsvd`, `ljsvd` and `bijsvd`. Everything is computed in float64; eigendecompositions and a ridge stand in for
Cholesky factors, so moments may be singular or zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointsvd.decompose import leading_eigenvectors

RIDGE = 1e-6  # of the mean eigenvalue: directions that the inputs never take are fitted as plain weights
TOLERANCE = 1e-4  # alternations end when the objective falls by less than this share
MAX_ITERATIONS = 20
_CG_STEPS = 6


def weighted_rjsvd(Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int) -> tuple[list[Tensor], Tensor]:
    """``W_n ~ U_n V``, in closed form: the rows of V are the leading eigenvectors of ``sum_n W_n^T C_n W_n``, and
    ``U_n = W_n V^T``.

    Ws: N matrices (rows_n, cols), Cs: N symmetric positive semidefinite (rows_n, rows_n). Returns U_n (rows_n, rank)
    and V (rank, cols) with orthonormal rows. Raises ValueError for shapes that do not fit, and a rank outside 1..cols.
    """
    doubles, moments = _checked(Ws, Cs)
    V_t = _fit_right(doubles, moments, rank)
    return [_like(W @ V_t, Ws[0]) for W in doubles], _like(V_t.T, Ws[0])


def weighted_ljsvd(Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """``W_n ~ U V_n``. Closed form if all C_n agree; the start is that of their sum, then V_n by least squares and U by
    conjugate gradients take turns until the objective settles.

    Ws: N matrices (rows, cols_n). Returns U (rows, rank) and V_n (rank, cols_n). Raises ValueError as `weighted_rjsvd`.
    """
    doubles, moments = _checked(Ws, Cs)
    U, Vs = _fit_left(doubles, moments, rank, None)
    return _like(U, Ws[0]), [_like(V, Ws[0]) for V in Vs]


def weighted_bijsvd(
    Ws: Sequence[Tensor], Cs: Sequence[Tensor], left_rank: int, right_rank: int
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """``W_n ~ U_n V + U V_n``: the two fits take turns on each other's residuals, from zero, until the error settles.

    Returns U_n, V, U, V_n as `bijsvd` does. With one rank 0 this is `weighted_ljsvd` or `weighted_rjsvd`, and the
    factors of the other are empty. Raises ValueError as `weighted_rjsvd`.
    """
    doubles, moments = _checked(Ws, Cs)
    rows = [len(W) for W in doubles]
    Us = [W.new_zeros(n, 0) for W, n in zip(doubles, rows, strict=True)]
    V_t, U = doubles[0].new_zeros(doubles[0].shape[1], 0), doubles[0].new_zeros(rows[0], 0)
    Vs = [W.new_zeros(0, W.shape[1]) for W in doubles]
    previous = float("inf")
    for _ in range(MAX_ITERATIONS if left_rank and right_rank else 1):
        residuals = doubles
        if right_rank:
            left_part = [W - U @ V for W, V in zip(doubles, Vs, strict=True)] if left_rank else doubles
            V_t = _fit_right(left_part, moments, right_rank)
            Us = [R @ V_t for R in left_part]
            residuals = [W - U_n @ V_t.T for W, U_n in zip(doubles, Us, strict=True)]
        if left_rank:
            U, Vs = _fit_left(residuals, moments, left_rank, U if U.shape[1] else None)
        error = _objective(residuals, moments, [U @ V for V in Vs]) if left_rank else 0.0
        if error > previous * (1 - TOLERANCE):
            break
        previous = error
    first = Ws[0]
    return [_like(U_n, first) for U_n in Us], _like(V_t.T, first), _like(U, first), [_like(V, first) for V in Vs]


def objective(Ws: Sequence[Tensor], Cs: Sequence[Tensor], approximations: Sequence[Tensor]) -> float:
    """``sum_n tr (W_n - A_n)^T C_n (W_n - A_n)``, without a ridge."""
    return _objective(*([x.detach().double() for x in xs] for xs in (Ws, Cs, approximations)))


def with_ridge(C: Tensor) -> Tensor:
    """C plus a small multiple of the identity; the identity itself for a zero moment."""
    mean = C.diagonal().mean()
    return C + torch.eye(len(C), dtype=C.dtype, device=C.device) * (RIDGE * mean if mean > 0 else 1.0)


def matrix_power(C: Tensor, power: float) -> Tensor:
    """C^power of a symmetric positive definite matrix."""
    eigenvalues, Q = torch.linalg.eigh(C)
    return Q * eigenvalues.clamp_min(eigenvalues[-1] * 1e-12).pow(power) @ Q.T


def _fit_right(Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int) -> Tensor:
    """V^T (cols, rank)."""
    cols = Ws[0].shape[1]
    if any(W.shape[1] != cols for W in Ws):
        raise ValueError(f"a shared V needs equally many columns, got {[tuple(W.shape) for W in Ws]}")
    _check_rank(rank, cols)
    return leading_eigenvectors(sum(W.T @ (C @ W) for W, C in zip(Ws, Cs, strict=True)), rank)  # type: ignore[arg-type]


def _fit_left(
    Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int, start: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """U (rows, rank) and V_n."""
    rows = len(Ws[0])
    if any(len(W) != rows for W in Ws):
        raise ValueError(f"a shared U needs equally many rows, got {[tuple(W.shape) for W in Ws]}")
    _check_rank(rank, rows)
    U = _pooled_left(Ws, Cs, rank) if start is None else start
    previous = float("inf")
    for _ in range(MAX_ITERATIONS):
        Vs = [torch.linalg.pinv(U.T @ C @ U, hermitian=True) @ (U.T @ (C @ W)) for W, C in zip(Ws, Cs, strict=True)]
        error = _objective(Ws, Cs, [U @ V for V in Vs])
        if len(Ws) == 1 or error > previous * (1 - TOLERANCE):
            break
        previous = error
        U = torch.linalg.qr(_improved_left(Ws, Cs, U, Vs)).Q
    return U, Vs


def _pooled_left(Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int) -> Tensor:
    """The best U if every member had the sum of all moments."""
    C: Tensor = sum(Cs)  # type: ignore[assignment]
    root, inverse_root = matrix_power(C, 0.5), matrix_power(C, -0.5)
    gram: Tensor = sum(W @ W.T for W in Ws)  # type: ignore[assignment]
    return inverse_root @ leading_eigenvectors(root @ gram @ root, rank)


def _improved_left(Ws: Sequence[Tensor], Cs: Sequence[Tensor], U: Tensor, Vs: Sequence[Tensor]) -> Tensor:
    """Some steps of conjugate gradients from U towards ``sum_n C_n U V_n V_n^T = sum_n C_n W_n V_n^T``, which has no
    closed form; each lowers the objective."""
    grams = [V @ V.T for V in Vs]

    def multiply(X: Tensor) -> Tensor:
        return sum(C @ (X @ G) for C, G in zip(Cs, grams, strict=True))  # type: ignore[return-value]

    residual = sum(C @ (W @ V.T) for W, C, V in zip(Ws, Cs, Vs, strict=True)) - multiply(U)
    direction, energy = residual, residual.square().sum()
    for _ in range(_CG_STEPS):
        image = multiply(direction)
        curvature = (direction * image).sum()
        if curvature <= 0:
            break
        step = energy / curvature
        U, residual = U + step * direction, residual - step * image
        energy, previous = residual.square().sum(), energy
        direction = residual + (energy / previous) * direction
    return U


def _objective(Ws: Sequence[Tensor], Cs: Sequence[Tensor], approximations: Sequence[Tensor]) -> float:
    errors = [W - A for W, A in zip(Ws, approximations, strict=True)]
    return float(sum((D * (C @ D)).sum() for D, C in zip(errors, Cs, strict=True)))


def _checked(Ws: Sequence[Tensor], Cs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    if not Ws or len(Ws) != len(Cs):
        raise ValueError(f"needs a moment for each of at least one matrix, got {len(Ws)} and {len(Cs)}")
    for W, C in zip(Ws, Cs, strict=True):
        if W.ndim != 2 or C.shape != (len(W), len(W)):
            raise ValueError(
                f"a matrix (rows, cols) needs a moment (rows, rows), got {tuple(W.shape)}, {tuple(C.shape)}"
            )
        if not (torch.isfinite(W).all() and torch.isfinite(C).all()):
            raise ValueError("a matrix or a moment holds NaN or infinite values")
    device = Ws[0].device
    return [W.detach().double() for W in Ws], [with_ridge(C.detach().double().to(device)) for C in Cs]


def _check_rank(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise ValueError(f"rank must be between 1 and {largest} for these matrices, got {rank}")


def _like(x: Tensor, reference: Tensor) -> Tensor:
    return x.to(reference.dtype).contiguous()
