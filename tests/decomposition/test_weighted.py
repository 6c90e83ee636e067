"""Joint decompositions in a metric, against brute force and against the plain ones."""

from itertools import pairwise

import pytest
import torch

from jointsvd import ljsvd, rjsvd
from jointsvd.decomposition.metric import objective, with_ridge
from jointsvd.decomposition.weighted import (
    balanced,
    weighted_bijsvd,
    weighted_ljsvd,
    weighted_rjsvd,
)


def moment(size, rank=None):
    x = torch.randn(rank or 2 * size, size, dtype=torch.float64)
    return x.T @ x


def steep_moment(size):
    """As of real layers: a few directions hold nearly all."""
    x = torch.randn(2 * size, size, dtype=torch.float64) * torch.logspace(0, -2, size, dtype=torch.float64)
    x = x @ torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return x.T @ x


def example(num=3, rows=8, cols=10):
    Ws = [torch.randn(rows, cols, dtype=torch.float64) for _ in range(num)]
    return Ws, [moment(rows) for _ in Ws], [moment(cols) for _ in Ws]


def brute_force(Ws, Cs, Gs, rank, side):
    """The objective after a long descent over both factors from several starts."""
    best = float("inf")
    for _ in range(4):
        shared = torch.randn(len(Ws[0]) if side == "left" else rank, rank if side == "left" else Ws[0].shape[1])
        own = [torch.randn(rank, W.shape[1]) if side == "left" else torch.randn(len(W), rank) for W in Ws]
        factors = [x.double().requires_grad_() for x in [shared, *own]]
        optimizer = torch.optim.LBFGS(factors, max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def loss(factors=factors, optimizer=optimizer):
            optimizer.zero_grad()
            shared, *own = factors
            products = [shared @ x if side == "left" else x @ shared for x in own]
            errors = [W - A for W, A in zip(Ws, products, strict=True)]
            total = sum(((C @ D) * (D @ G)).sum() for D, C, G in zip(errors, Cs, Gs, strict=True))
            total.backward()
            return total

        for _ in range(4):
            optimizer.step(loss)
        best = min(best, loss().item())
    return best


@pytest.mark.parametrize("side", ["left", "right"])
def test_identities_give_the_plain_decompositions(side):
    Ws, _, _ = example()
    Cs, Gs = [torch.eye(8)] * 3, [torch.eye(10)] * 3
    if side == "left":
        (U, Vs), (plain_U, plain_Vs) = weighted_ljsvd(Ws, Cs, Gs, 4), ljsvd(Ws, 4)
        found, plain = [U @ V for V in Vs], [plain_U @ V for V in plain_Vs]
    else:
        (Us, V), (plain_Us, plain_V) = weighted_rjsvd(Ws, Cs, Gs, 4), rjsvd(Ws, 4)
        found, plain = [U @ V for U in Us], [U @ plain_V for U in plain_Us]
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_one_matrix_alone_is_the_truncated_svd_in_its_metric():
    (W,), (C,), (G,) = example(num=1)
    U, (V,) = weighted_ljsvd([W], [C], [G], 3)
    root_C, root_G = torch.linalg.cholesky(C), torch.linalg.cholesky(G)
    values = torch.linalg.svdvals(root_C.T @ W @ root_G)
    assert objective([W], [C], [G], [U @ V]) == pytest.approx(float(values[3:].square().sum()), rel=1e-3)
    (U,), V = weighted_rjsvd([W], [C], [G], 3)
    assert objective([W], [C], [G], [U @ V]) == pytest.approx(float(values[3:].square().sum()), rel=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_factors_come_close_to_brute_force(side):
    Ws, Cs, Gs = example()
    best = brute_force(Ws, Cs, Gs, 3, side)
    if side == "left":
        U, Vs = weighted_ljsvd(Ws, Cs, Gs, 3)
        products = [U @ V for V in Vs]
    else:
        Us, V = weighted_rjsvd(Ws, Cs, Gs, 3)
        products = [U @ V for U in Us]
    assert best * (1 - 1e-6) <= objective(Ws, Cs, Gs, products) <= 1.05 * best


def test_both_sides_are_below_either_alone():
    Ws, Cs, Gs = example()
    Us, V, U, Vs = weighted_bijsvd(Ws, Cs, Gs, 2, 3)
    both = objective(Ws, Cs, Gs, [U_n @ V + U @ V_n for U_n, V_n in zip(Us, Vs, strict=True)])
    Us, V, _, _ = weighted_bijsvd(Ws, Cs, Gs, 0, 3)
    _, _, U, Vs = weighted_bijsvd(Ws, Cs, Gs, 2, 0)
    assert both < objective(Ws, Cs, Gs, [U_n @ V for U_n in Us])
    assert both < objective(Ws, Cs, Gs, [U @ V_n for V_n in Vs])


@pytest.mark.parametrize("seed", range(12))
def test_the_error_of_both_sides_falls_while_they_alternate(seed):
    torch.manual_seed(seed)
    Ws = [torch.randn(48, 40, dtype=torch.float64) for _ in range(4)]
    Cs, Gs = [steep_moment(48) for _ in Ws], [steep_moment(40) for _ in Ws]
    errors = []
    for iterations in (1, 2, 5, 20):
        Us, V, U, Vs = weighted_bijsvd(Ws, Cs, Gs, 6, 6, iterations=iterations)
        errors.append(objective(Ws, Cs, Gs, [U_n @ V + U @ V_n for U_n, V_n in zip(Us, Vs, strict=True)]))
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("limit", [1, 20])
def test_own_factors_fit_the_shared_one_that_is_returned(limit, monkeypatch):
    """Also when the alternation ends before it settles."""
    monkeypatch.setattr("jointsvd.decomposition.weighted.MAX_ITERATIONS", limit)
    Ws = [torch.randn(12, 10, dtype=torch.float64) for _ in range(3)]
    Cs, Gs = [steep_moment(12) for _ in Ws], [steep_moment(10) for _ in Ws]
    U, Vs = weighted_ljsvd(Ws, Cs, Gs, 3)
    for W, C, V in zip(Ws, map(with_ridge, Cs), Vs, strict=True):
        torch.testing.assert_close(V, torch.linalg.solve(U.T @ C @ U, U.T @ C @ W), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
def test_zero_and_deficient_moments_give_finite_factors(rank):
    Ws, _, _ = example(num=2)
    Cs = [torch.zeros(8, 8) if rank == 0 else moment(8, rank) for _ in Ws]
    Gs = [torch.zeros(10, 10) if rank == 0 else moment(10, rank) for _ in Ws]
    U, Vs = weighted_ljsvd(Ws, Cs, Gs, 2)
    assert all(torch.isfinite(x).all() for x in (U, *Vs))
    if rank:  # what the data show is kept
        products = [U @ V for V in Vs]
        zero = [torch.zeros_like(W) for W in Ws]
        assert objective(Ws, Cs, Gs, products) < 0.5 * objective(Ws, Cs, Gs, zero)


def test_bad_input():
    Ws, Cs, Gs = example()
    for call, message in [
        (lambda: weighted_ljsvd([], [], [], 1), "at least one matrix"),
        (lambda: weighted_ljsvd(Ws, Gs, Cs, 1), "needs moments"),
        (lambda: weighted_ljsvd(Ws, Cs, Gs, 9), "between 1 and 8"),
        (lambda: weighted_ljsvd([*Ws[:2], Ws[2][:5]], [*Cs[:2], Cs[2][:5, :5]], Gs, 1), "sides of one length"),
        (lambda: weighted_rjsvd([Ws[0] * float("nan")], Cs[:1], Gs[:1], 1), "NaN"),
        (lambda: weighted_bijsvd([], [], [], 1, 1), "at least one matrix"),
        (lambda: weighted_bijsvd(Ws, Cs, Gs, 1, 11), "between 1 and 10"),
        (lambda: weighted_bijsvd(Ws, Cs, Gs, 1, 1, iterations=0), "iterations must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("num", [1, 3])
def test_factors_are_balanced(num):
    Ws, Cs, Gs = example(num=num)
    U, Vs = weighted_ljsvd(Ws, Cs, Gs, 4)
    torch.testing.assert_close(U.T @ U, sum(V @ V.T for V in Vs), atol=1e-8, rtol=1e-8)
    Us, V = weighted_rjsvd(Ws, Cs, Gs, 4)
    torch.testing.assert_close(V @ V.T, sum(U.T @ U for U in Us), atol=1e-8, rtol=1e-8)
    unbalanced = torch.randn(4, 4, dtype=torch.float64)
    again, others = balanced(U @ unbalanced, [torch.linalg.solve(unbalanced, V) for V in Vs])
    for one, other in zip(Vs, others, strict=True):
        torch.testing.assert_close(again @ other, U @ one)
