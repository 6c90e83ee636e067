"""Moments of few samples, against the dense matrices that they are."""

import pytest
import torch

from jointsvd.decomposition.metric import noise_share, objective, shrunk, with_ridge
from jointsvd.decomposition.narrow import narrowed
from jointsvd.decomposition.spanned import Spanned
from jointsvd.decomposition.weighted import weighted_bijsvd, weighted_ljsvd, weighted_rjsvd


def samples(size, num=5, folds=3):
    return [torch.randn(num, size, dtype=torch.float64) for _ in range(folds)]


def both(size):
    """Folds of one moment, spanned and dense."""
    Xs = samples(size)
    return Spanned.of(Xs), torch.stack([X.T @ X for X in Xs])


def test_all_that_is_asked_of_a_moment_is_as_of_the_dense_one():
    spanned, dense = both(40)
    X = torch.randn(40, 3, dtype=torch.float64)
    assert spanned.shape == dense.shape
    assert noise_share(spanned) == pytest.approx(noise_share(dense))
    for one, other in ((spanned[1], dense[1]), (shrunk(spanned), shrunk(dense)), (with_ridge(spanned[0]), dense[0])):
        torch.testing.assert_close(one.dense(), other, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one @ X, other @ X, atol=1e-3, rtol=1e-4)
    W, A = torch.randn(2, 40, 6, dtype=torch.float64)
    G = torch.eye(6, dtype=torch.float64)
    for one, other in ((spanned[0] / 2, dense[0] / 2), (shrunk(spanned), shrunk(dense))):
        assert objective([W], [one], [G], [A]) == pytest.approx(objective([W], [other], [G], [A]))


@pytest.mark.parametrize(("rows", "cols"), [(60, 8), (60, 50), (8, 60)])
@pytest.mark.parametrize("one", [weighted_ljsvd, weighted_rjsvd])
def test_a_layer_alone_is_factored_as_with_the_dense_moment(rows, cols, one):
    W = torch.randn(rows, cols, dtype=torch.float64)
    (C, dense_C), (G, dense_G) = both(rows), both(cols)
    found, expected = (one([W], [shrunk(C)], [shrunk(G)], 4) for C, G in ((C, G), (dense_C, dense_G)))
    products = []
    for left, right in (found, expected):
        U, V = (left, right[0]) if one is weighted_ljsvd else (left[0], right)
        assert U.shape == (rows, 4)
        assert V.shape == (4, cols)
        products.append(U @ V)
    torch.testing.assert_close(*products, atol=1e-6, rtol=1e-6)


def test_layers_that_share_have_their_moments_too():
    Ws = [torch.randn(30, 12, dtype=torch.float64) for _ in range(2)]
    Cs, Gs = [both(30) for _ in Ws], [both(12) for _ in Ws]
    for ranks in ((3, 0), (0, 3), (2, 2)):
        errors = []
        for kind in (0, 1):
            chosen = [shrunk(C[kind]) for C in Cs], [shrunk(G[kind]) for G in Gs]
            Us, V, U, Vs = weighted_bijsvd(Ws, *chosen, *ranks)
            products = [(Us[n] @ V if ranks[1] else 0) + (U @ Vs[n] if ranks[0] else 0) for n in range(2)]
            errors.append(objective(Ws, *([shrunk(M[1]) for M in Ms] for Ms in (Cs, Gs)), products))
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_nothing_is_left_out_in_narrow_coordinates():
    W, (folds, dense) = torch.randn(60, 8, dtype=torch.float64), both(60)
    narrow, C, widen = narrowed(W, shrunk(folds))
    assert len(narrow) == 15 + 8
    torch.testing.assert_close(narrow.T @ C @ narrow, W.T @ shrunk(dense) @ W)
    torch.testing.assert_close(widen(narrow), W)


def test_a_matrix_within_the_samples_has_no_rest():
    C, _ = both(60)
    W = C.basis @ torch.randn(15, 4, dtype=torch.float64)
    U, (V,) = weighted_ljsvd([W], [C[0]], [torch.eye(4, dtype=torch.float64)], 3)
    assert U.isfinite().all()
    zero, (V,) = weighted_ljsvd([W * 0], [C[0]], [torch.eye(4, dtype=torch.float64)], 3)
    assert (zero @ V).abs().max() < 1e-6
