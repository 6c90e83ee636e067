from itertools import pairwise

import pytest
import torch

from jointsvd import bijsvd, ljsvd, rjsvd, truncated_svd


def matrices(num, rows, cols, *, dtype=torch.float64, decay=0.0):
    """Random matrices; with decay > 0 their spectra fall off, as those of trained layers do."""
    generator = torch.Generator().manual_seed(rows * cols + num)
    scale = torch.arange(1, cols + 1, dtype=torch.float64) ** -decay
    return [(torch.randn(rows, cols, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in range(num)]


def tail(stack, rank):
    """Eckart-Young: the squared error of the best approximation is the sum of the squared singular values left out."""
    return torch.linalg.svdvals(stack.double())[rank:].square().sum()


def error(Ws, approximations):
    return sum((W.double() - A.double()).square().sum() for W, A in zip(Ws, approximations, strict=True))


def bijsvd_error(Ws, left_rank, right_rank, iterations=30):
    Us, V, U, Vs = bijsvd(Ws, left_rank, right_rank, iterations=iterations)
    return error(Ws, [U_n @ V + U @ V_n for U_n, V_n in zip(Us, Vs, strict=True)])


def plain_alternation(Ws, left_rank, right_rank, iterations):
    """Algorithm 3 of the paper with a full SVD of the stack in every step."""
    W = torch.stack(Ws)
    num, rows, cols = W.shape
    joint_left = torch.zeros_like(W)
    for _ in range(iterations):
        residual = W - joint_left
        V = torch.linalg.svd(residual.reshape(num * rows, cols), full_matrices=False).Vh[:right_rank]
        residual = W - residual @ V.T @ V
        U = torch.linalg.svd(residual.movedim(0, 1).reshape(rows, num * cols), full_matrices=False).U[:, :left_rank]
        joint_left = U @ (U.T @ residual)
        squared_error = (residual - joint_left).square().sum()
    return squared_error


@pytest.mark.parametrize(("rows", "cols"), [(30, 20), (20, 30), (24, 24)])
@pytest.mark.parametrize("rank", [1, 7, 20])
def test_truncated_svd_is_optimal(rows, cols, rank):
    (W,) = matrices(1, rows, cols)
    U, V = truncated_svd(W, rank)
    assert U.shape == (rows, rank)
    assert V.shape == (rank, cols)
    torch.testing.assert_close(error([W], [U @ V]), tail(W, rank))
    torch.testing.assert_close(V @ V.T, torch.eye(rank, dtype=W.dtype))
    torch.testing.assert_close(U.norm(dim=0), torch.linalg.svdvals(W)[:rank])


@pytest.mark.parametrize("rank", [1, 6, 16])
def test_joint_svds_reach_the_tail_of_their_stack(rank):
    Ws = matrices(3, 20, 16) + matrices(1, 9, 16)  # rows may differ: the HID layer of RJSVD-1
    Us, V = rjsvd(Ws, rank)
    torch.testing.assert_close(error(Ws, [U @ V for U in Us]), tail(torch.cat(Ws), rank))

    Ws = [W.T for W in Ws]
    U, Vs = ljsvd(Ws, rank)
    torch.testing.assert_close(error(Ws, [U @ V for V in Vs]), tail(torch.cat(Ws, 1), rank))


def test_one_member_is_plain_svd():
    (W,) = matrices(1, 12, 18)
    expected = torch.matmul(*truncated_svd(W, 5))
    (U,), V = rjsvd([W], 5)
    torch.testing.assert_close(U @ V, expected)
    U, (V,) = ljsvd([W], 5)
    torch.testing.assert_close(U @ V, expected)


def test_rank_deficient_and_zero_matrices():
    A, B = matrices(2, 15, 4)
    W = A @ B.T
    torch.testing.assert_close(torch.matmul(*truncated_svd(W, 9)), W)
    assert torch.equal(torch.matmul(*truncated_svd(torch.zeros(5, 8), 3)), torch.zeros(5, 8))
    Us, V, U, Vs = bijsvd([torch.zeros(6, 6)] * 2, 2, 2)
    assert all(factor.isfinite().all() for factor in [*Us, V, U, *Vs])


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize(("left_rank", "right_rank"), [(4, 4), (1, 9), (9, 1), (20, 25)])
def test_bijsvd_error_never_rises_and_is_bounded_by_its_ends(left_rank, right_rank, decay):
    Ws = matrices(3, 40, 32, decay=decay)
    errors = [bijsvd_error(Ws, left_rank, right_rank, iterations) for iterations in range(1, 13)]
    energy = sum(W.square().sum() for W in Ws)
    assert all(after <= before + 1e-12 * energy for before, after in pairwise(errors))
    assert errors[0] <= tail(torch.cat(Ws), right_rank) + 1e-12 * energy
    assert errors[0] <= tail(torch.cat(Ws, 1), left_rank) + 1e-12 * energy
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0])
def test_the_first_iteration_is_optimal_also_where_it_begins_in_float32(decay):
    Ws = matrices(2, 320, 300, decay=decay)
    V = bijsvd(Ws, 6, 9, iterations=1)[1]
    W, P = torch.stack(Ws), torch.eye(300, dtype=torch.float64) - V.T @ V
    lost = (W @ P).square().sum()
    energy = W.square().sum()
    torch.testing.assert_close(lost, tail(torch.cat(Ws), 9), rtol=0, atol=1e-13 * energy)
    best = tail(torch.cat(list(W @ P), 1), 6)
    torch.testing.assert_close(bijsvd_error(Ws, 6, 9, 1), best, rtol=0, atol=1e-13 * energy)


def test_bijsvd_of_float32_is_that_of_the_same_values_in_float64():
    Ws = [W.float() for W in matrices(3, 320, 300)]
    found, expected = bijsvd(Ws, 6, 9), bijsvd([W.double() * (1 + 1e-12) for W in Ws], 6, 9)
    errors = [
        error(Ws, [U_n @ V + U @ V_n for U_n, V_n in zip(Us, Vs, strict=True)]) for Us, V, U, Vs in (found, expected)
    ]
    torch.testing.assert_close(*errors, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_bijsvd_of_matrices_beyond_the_range_of_float32(scale):
    Ws = [W * scale for W in matrices(2, 300, 260)]
    Us, V, U, Vs = bijsvd(Ws, 4, 4, iterations=3)
    energy = sum(W.square().sum() for W in Ws)
    assert error(Ws, [U_n @ V + U @ V_n for U_n, V_n in zip(Us, Vs, strict=True)]) < tail(torch.cat(Ws), 4) < energy


def test_bijsvd_with_one_rank_zero_is_the_one_sided_method():
    Ws = matrices(3, 20, 16)
    Us, V, U, Vs = bijsvd(Ws, 0, 5)
    torch.testing.assert_close([V, *Us], [rjsvd(Ws, 5)[1], *rjsvd(Ws, 5)[0]])
    assert (U.shape, Vs[0].shape) == ((20, 0), (0, 16))
    Us, V, U, Vs = bijsvd(Ws, 5, 0)
    torch.testing.assert_close([U, *Vs], [ljsvd(Ws, 5)[0], *ljsvd(Ws, 5)[1]])
    assert (Us[0].shape, V.shape) == ((20, 0), (0, 16))


@pytest.mark.parametrize(("rows", "cols", "num", "left_rank", "right_rank"), [(192, 192, 4, 4, 4), (60, 40, 3, 8, 10)])
def test_bijsvd_comes_within_a_thousandth_of_alternation_by_full_svds(rows, cols, num, left_rank, right_rank):
    Ws = matrices(num, rows, cols)
    assert bijsvd_error(Ws, left_rank, right_rank) <= 1.001 * plain_alternation(Ws, left_rank, right_rank, 30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_keep_the_dtype_and_are_computed_in_float64(dtype):
    Ws = matrices(2, 10, 12, dtype=dtype)
    Us, V, U, Vs = bijsvd(Ws, 2, 3)
    assert {factor.dtype for factor in [*Us, V, U, *Vs]} == {dtype}
    in_float64 = truncated_svd(Ws[0].double(), 3)
    assert torch.equal(truncated_svd(Ws[0], 3)[0], in_float64[0].to(dtype))


def test_inputs_are_not_changed_and_gradients_not_followed():
    W = matrices(1, 6, 6)[0].requires_grad_()
    before = W.detach().clone()
    U, _ = truncated_svd(W, 2)
    assert not U.requires_grad
    assert torch.equal(W, before)


GOOD = torch.ones(4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rjsvd([], 1), "at least one"),
        (lambda: truncated_svd(torch.full((4, 5), torch.nan), 1), "NaN or infinite"),
        (lambda: ljsvd([GOOD, torch.full((4, 5), torch.inf)], 1), "NaN or infinite"),
        (lambda: truncated_svd(torch.ones(0, 5), 1), "non-empty"),
        (lambda: truncated_svd(torch.ones(2, 3, 4), 1), "2-D"),
        (lambda: truncated_svd(torch.ones(4, 5, dtype=torch.int64), 1), "floating"),
        (lambda: truncated_svd(GOOD, 0), "between 1 and 4"),
        (lambda: truncated_svd(GOOD, 5), "between 1 and 4"),
        (lambda: rjsvd([GOOD, GOOD], 6), "between 1 and 5"),
        (lambda: ljsvd([GOOD, GOOD], 5), "between 1 and 4"),
        (lambda: rjsvd([GOOD, GOOD.T], 1), "equally many columns"),
        (lambda: ljsvd([GOOD, GOOD.T], 1), "equally many rows"),
        (lambda: bijsvd([GOOD, torch.ones(4, 6)], 1, 1), "one shape"),
        (lambda: bijsvd([GOOD, GOOD], 0, 0), "both 0"),
        (lambda: bijsvd([GOOD, GOOD], 5, 1), "left_rank must be between 1 and 4"),
        (lambda: bijsvd([GOOD, GOOD], 1, 6), "right_rank must be between 1 and 5"),
        (lambda: bijsvd([GOOD, GOOD], -1, 1), "left_rank"),
        (lambda: bijsvd([GOOD, GOOD], 1, 1, iterations=0), "iterations"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
