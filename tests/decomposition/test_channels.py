"""Which input channels say what all say."""

import pytest
import torch

from jointsvd.decomposition.channels import fitted, left_out, ordered, rows_of

HEIGHT, NUM, OUTPUTS, WIDTH = 3, 6, 4, 2


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(500, HEIGHT * NUM, generator=generator, dtype=torch.float64)
    X[:, ::2] *= 3
    X[:, 1] += X[:, 4]
    W = torch.randn(HEIGHT * NUM, WIDTH * OUTPUTS, generator=generator, dtype=torch.float64)
    root = torch.randn(OUTPUTS, OUTPUTS, generator=generator, dtype=torch.float64)
    return W, X.T @ X / len(X), root @ root.T


def error(W, C, G, channels):
    rows = rows_of(torch.tensor(channels), NUM, HEIGHT)
    return left_out(W, C, G, rows, fitted(W, C, rows))


def test_rows_of_a_channel():
    assert rows_of(torch.tensor([0, 2]), 5, 3).tolist() == [0, 2, 5, 7, 10, 12]


def test_the_error_is_that_of_the_objective():
    W, C, G = problem()
    rows = rows_of(torch.tensor([1, 3]), NUM, HEIGHT)
    A = fitted(W, C, rows)
    D = W.clone()
    D[rows] -= A
    whole = torch.block_diag(*[G] * WIDTH)
    assert left_out(W, C, G, rows, A) == pytest.approx(float((D.T @ C @ D @ whole).trace()))


def test_no_other_matrix_of_these_channels_is_closer():
    W, C, G = problem()
    rows = rows_of(torch.tensor([0, 5]), NUM, HEIGHT)
    A = fitted(W, C, rows)
    least = left_out(W, C, G, rows, A)
    torch.manual_seed(0)
    for _ in range(20):
        assert left_out(W, C, G, rows, A + 0.01 * torch.randn_like(A)) > least


def test_each_channel_is_the_best_after_those_before_it():
    W, C, G = problem()
    order = ordered(W, C, G, HEIGHT, NUM)
    assert sorted(order) == list(range(NUM))
    for place in range(NUM):
        errors = {channel: error(W, C, G, [*order[:place], channel]) for channel in set(range(NUM)) - {*order[:place]}}
        assert errors[order[place]] == pytest.approx(min(errors.values()), rel=1e-3, abs=1e-6 * float(C.trace()))


def test_copies_come_last():
    W, C, G = problem()
    half = torch.eye(NUM, dtype=C.dtype)
    half[3:] = half[:3]
    copies = torch.kron(torch.eye(HEIGHT, dtype=C.dtype), half)
    order = ordered(W, copies @ C @ copies.T, G, HEIGHT, NUM)
    assert {channel % 3 for channel in order[:3]} == {0, 1, 2}
    assert error(W, copies @ C @ copies.T, G, order[:3]) < 1e-4 * error(W, copies @ C @ copies.T, G, order[:2])
