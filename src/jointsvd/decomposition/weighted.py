"""Joint decompositions in the metric of how layers are used (`metric.py`).

With identities as moments these are `rjsvd`, `ljsvd` and `bijsvd`. All is computed in float64; moments get a
ridge, so they may be singular or zero. `Spanned` moments of a layer by itself are never made dense.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jointsvd.decomposition.metric import objective, root, times, unrooted, with_ridge
from jointsvd.decomposition.narrow import narrowed
from jointsvd.decomposition.spanned import Moment, Spanned
from jointsvd.decomposition.subspaces import leading_subspace

TOLERANCE = 1e-4  # alternations end when the objective falls by less than this share
MAX_ITERATIONS = 20  # of each alternation
_CG_STEPS = 6


def weighted_rjsvd(
    Ws: Sequence[Tensor], Cs: Sequence[Moment], Gs: Sequence[Moment], rank: int
) -> tuple[list[Tensor], Tensor]:
    """``W_n ~ U_n V`` with one V: `weighted_ljsvd` of the transposes.

    Ws: N matrices (rows_n, cols), Cs: (rows_n, rows_n), Gs: (cols, cols), symmetric positive semidefinite. Returns U_n
    (rows_n, rank) and V (rank, cols). Raises ValueError for shapes that do not fit together and bad ranks.
    """
    V, Us = weighted_ljsvd([W.T for W in Ws], Gs, Cs, rank)
    return [U.T.contiguous() for U in Us], V.T.contiguous()


def weighted_ljsvd(
    Ws: Sequence[Tensor], Cs: Sequence[Moment], Gs: Sequence[Moment], rank: int
) -> tuple[Tensor, list[Tensor]]:
    """``W_n ~ U V_n`` with one U. Closed form for one member, or if all C_n agree up to their scale: truncated SVD of
    ``C^1/2 W G^1/2``. Else that of the mean C, all scaled alike, is the start, and V_n by least squares and U by
    conjugate gradients take turns until the objective settles.

    Ws: N matrices (rows, cols_n). Returns U (rows, rank) and V_n (rank, cols_n), `balanced`. Raises ValueError as
    `weighted_rjsvd`.
    """
    U, Vs = balanced(*_left(*_checked(Ws, Cs, Gs), rank))
    return _like(U, Ws[0]), [_like(V, Ws[0]) for V in Vs]


def _left(Ws: list[Tensor], Cs: list[Moment], Gs: list[Moment], rank: int) -> tuple[Tensor, list[Tensor]]:
    """Of `weighted_ljsvd`, in the coordinates in which each side is small; one that several share stays as it is."""
    sides = [narrowed(W.T, G) for W, G in zip(Ws, Gs, strict=True)]
    Ws, widen = [W_t.T for W_t, _, _ in sides], lambda U: U
    dense = [narrowed(W, C) for W, C in zip(Ws, Cs, strict=True)] if len(Ws) == 1 else None
    if dense:
        ((W, C, widen),) = dense
        Ws, moments = [W], [C]
    else:
        moments = _dense(Cs)
    U, Vs = _Metric.of(moments, [G for _, G, _ in sides]).fit(Ws, rank)
    return widen(U), [back(V.T).T for V, (_, _, back) in zip(Vs, sides, strict=True)]


def weighted_bijsvd(
    Ws: Sequence[Tensor],
    Cs: Sequence[Moment],
    Gs: Sequence[Moment],
    left_rank: int,
    right_rank: int,
    *,
    iterations: int = MAX_ITERATIONS,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """``W_n ~ U_n V + U V_n``: the two fits take turns on each other's residuals, from zero and then each from where it
    stood, until the error settles or `iterations` are over. The best factors on the way are returned.

    Returns U_n, V, U, V_n as `bijsvd` does. With one rank 0 this is `weighted_ljsvd` or `weighted_rjsvd`, and the
    factors of the other are empty. Raises ValueError as `weighted_rjsvd`, and for iterations < 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    nothing = Ws[0].new_zeros(0, 0) if Ws else torch.empty(0)
    if not left_rank:
        return *weighted_rjsvd(Ws, Cs, Gs, right_rank), nothing, []
    if not right_rank:
        return [], nothing, *weighted_ljsvd(Ws, Cs, Gs, left_rank)
    doubles, *moments = _checked(Ws, Cs, Gs)
    _, *swapped = _checked([W.T for W in Ws], Gs, Cs)
    metrics = _Metric.of(*map(_dense, moments)), _Metric.of(*map(_dense, swapped))
    (U, Vs), (V_t, Us_t) = _alternate(
        doubles, metrics, (left_rank, right_rank), iterations, lambda As: objective(doubles, Cs, Gs, As)
    )
    Us = [_like(U_t.T, Ws[0]) for U_t in Us_t]
    return Us, _like(V_t.T, Ws[0]), _like(U, Ws[0]), [_like(V, Ws[0]) for V in Vs]


def balanced(U: Tensor, Vs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same products ``U V_n`` from factors of equal singular values, ``U^T U = sum_n V_n V_n^T``: of all gauges the
    one of least norm, from which gradient descent does not blow one factor up through a large other one."""
    if U.shape[1] > min(len(U), sum(V.shape[1] for V in Vs)):
        return U, list(Vs)  # more ranks than there can be
    Q_u, R_u = torch.linalg.qr(U)
    Q_v, R_v = torch.linalg.qr(torch.cat(list(Vs), 1).T)
    A, values, B = torch.linalg.svd(R_u @ R_v.T)
    root = values.sqrt()
    V = (Q_v @ B.T * root).T
    return Q_u @ A * root, list(V.split([V_n.shape[1] for V_n in Vs], 1))


@dataclass(frozen=True)
class _Metric:
    """Moments made ready for fits of a shared left factor: C_n scaled to mean eigenvalue 1, its scale in G_n, of which
    the roots are kept."""

    Cs: list[Tensor]
    G_roots: list[Tensor]

    @classmethod
    def of(cls, Cs: Sequence[Tensor], Gs: Sequence[Tensor]) -> "_Metric":
        scales = [C.diagonal().mean() for C in Cs]
        G_roots = [root(G * scale) for G, scale in zip(Gs, scales, strict=True)]
        return cls([C / scale for C, scale in zip(Cs, scales, strict=True)], G_roots)

    def fit(self, Ws: Sequence[Tensor], rank: int, start: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """U (rows, rank) and V_n. start: a U no worse than which the result is, with V_n of its own."""
        if not 1 <= rank <= len(Ws[0]):
            raise ValueError(f"rank must be between 1 and {len(Ws[0])} for these matrices, got {rank}")
        halves = [times(R, W.T).T for W, R in zip(Ws, self.G_roots, strict=True)]
        U, Ys = _fit_left(halves, self.Cs, rank, start)
        return U, [unrooted(R, Y.T).T for Y, R in zip(Ys, self.G_roots, strict=True)]


def _alternate(
    Ws: Sequence[Tensor],
    metrics: tuple[_Metric, _Metric],
    ranks: tuple[int, int],
    iterations: int,
    error_of: Callable[[list[Tensor]], float],
) -> tuple[tuple[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]:
    """(U, V_n) and, of the transposes, (V^T, U_n^T), of `weighted_bijsvd`; metrics and ranks: left, right."""
    left = [torch.zeros_like(W) for W in Ws]
    U, V_t, best, previous = None, None, float("inf"), float("inf")
    for _ in range(iterations):
        V_t, Us_t = metrics[1].fit([(W - A).T for W, A in zip(Ws, left, strict=True)], ranks[1], V_t)
        right = [(V_t @ U_t).T for U_t in Us_t]
        U, Vs = metrics[0].fit([W - A for W, A in zip(Ws, right, strict=True)], ranks[0], U)
        left = [U @ V for V in Vs]
        error = error_of([one + other for one, other in zip(left, right, strict=True)])
        if error <= best:
            best, found = error, (balanced(U, Vs), balanced(V_t, Us_t))
        if error > previous * (1 - TOLERANCE):
            break
        previous = error
    return found


def _fit_left(
    Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int, start: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """U (rows, rank) and V_n for G_n = I, from `start` or from the pooled U, whichever is better."""
    U = _pooled_left(Ws, Cs, rank)
    if len(Ws) == 1:
        return U, [_fit_right(Ws[0], Cs[0], U)[0]]
    whole = sum(float((W * times(C, W)).sum()) for W, C in zip(Ws, Cs, strict=True))
    Vs, error = _fit_rights(Ws, Cs, U, whole)
    if start is not None:
        others, other_error = _fit_rights(Ws, Cs, start, whole)
        U, Vs, error = (start, others, other_error) if other_error < error else (U, Vs, error)
    for _ in range(MAX_ITERATIONS):
        improved = torch.linalg.qr(_improved_left(Ws, Cs, U, Vs)).Q
        improved_Vs, improved_error = _fit_rights(Ws, Cs, improved, whole)
        if improved_error > error + 1e-12 * whole:  # more than rounding
            break
        previous, U, Vs, error = error, improved, improved_Vs, improved_error
        if error > previous * (1 - TOLERANCE):
            break
    return U, Vs


def _fit_right(W: Tensor, C: Tensor, U: Tensor) -> tuple[Tensor, float]:
    """The best V for this U, and how much of ``tr W^T C W`` it takes away."""
    CU = times(C, U)
    CUW = CU.T @ W
    V = torch.linalg.pinv(U.T @ CU, hermitian=True) @ CUW
    return V, float((V * CUW).sum())


def _fit_rights(Ws: Sequence[Tensor], Cs: Sequence[Tensor], U: Tensor, whole: float) -> tuple[list[Tensor], float]:
    """The best V_n for this U, and what they miss of ``whole = sum_n tr W_n^T C_n W_n``."""
    Vs, taken = zip(*(_fit_right(W, C, U) for W, C in zip(Ws, Cs, strict=True)), strict=True)
    return list(Vs), whole - sum(taken)


def _pooled_left(Ws: Sequence[Tensor], Cs: Sequence[Tensor], rank: int) -> Tensor:
    """The best U if every member had the mean of all moments."""
    C = torch.stack(list(Cs)).mean(0)
    R = root(C)
    half = times(R, torch.cat(list(Ws), 1))
    if rank <= half.shape[1] < len(half):
        return unrooted(R, torch.linalg.qr(half @ leading_subspace(half.T @ half, rank)).Q)
    return unrooted(R, leading_subspace(half @ half.T, rank))


def _improved_left(Ws: Sequence[Tensor], Cs: Sequence[Tensor], U: Tensor, Vs: Sequence[Tensor]) -> Tensor:
    """Some steps of conjugate gradients from U towards ``sum_n C_n U V_n V_n^T = sum_n C_n W_n V_n^T``, which has no
    closed form; each lowers the objective."""
    grams = [V @ V.T for V in Vs]

    def multiply(X: Tensor) -> Tensor:
        return torch.stack([times(C, X @ G) for C, G in zip(Cs, grams, strict=True)]).sum(0)

    residual = torch.stack([times(C, W @ V.T) for W, C, V in zip(Ws, Cs, Vs, strict=True)]).sum(0) - multiply(U)
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


def _checked(
    Ws: Sequence[Tensor], Cs: Sequence[Moment], Gs: Sequence[Moment]
) -> tuple[list[Tensor], list[Moment], list[Moment]]:
    """All in float64, the moments with their ridge."""
    if not Ws or not len(Ws) == len(Cs) == len(Gs):
        raise ValueError(f"needs two moments for each of at least one matrix, got {len(Ws)}, {len(Cs)}, {len(Gs)}")
    for W, C, G in zip(Ws, Cs, Gs, strict=True):
        moments = zip(W.shape, (C, G), strict=False)
        if W.ndim != 2 or any(M.ndim != 2 or M.shape[0] != M.shape[1] or n % len(M) for n, M in moments):
            shapes = ", ".join(str(tuple(x.shape)) for x in (W, C, G))
            raise ValueError(f"a matrix (rows, cols) needs moments (rows, rows) and (cols, cols), got {shapes}")
        if not all(x.isfinite().all() for x in (W, C, G)):
            raise ValueError("a matrix or a moment holds NaN or infinite values")
    if len({len(W) for W in Ws}) > 1:
        raise ValueError(f"a shared factor needs sides of one length, got {[tuple(W.shape) for W in Ws]}")
    with_ridges = [[with_ridge(M.detach().double().to(Ws[0].device)) for M in Ms] for Ms in (Cs, Gs)]
    return [W.detach().double() for W in Ws], *with_ridges  # type: ignore[return-value]


def _dense(moments: Sequence[Moment]) -> list[Tensor]:
    return [M.dense() if isinstance(M, Spanned) else M for M in moments]


def _like(x: Tensor, reference: Tensor) -> Tensor:
    return x.to(reference.dtype).contiguous()
