"""Tucker-2 alone and coupled: the maths, against full ranks and against tensorly."""

import pytest
import torch
from tensorly.decomposition import partial_tucker

from jointsvd import coupled_tucker2, tucker2
from jointsvd.decomposition.tucker import tucker2_product


def low_rank(shape, in_rank, out_rank):
    height, width, in_channels, out_channels = shape
    core = torch.randn(height, width, in_rank, out_rank)
    return torch.randn(in_channels, in_rank) @ core @ torch.randn(out_rank, out_channels)


def test_full_rank_is_exact():
    W = torch.randn(3, 3, 6, 8)
    torch.testing.assert_close(tucker2_product(*tucker2(W, (6, 8))), W, atol=1e-5, rtol=1e-5)


def test_a_weight_of_its_ranks_is_found():
    W = low_rank((3, 3, 12, 16), 4, 5)
    A, core, B = tucker2(W, (4, 5))
    assert (A.shape, core.shape, B.shape) == ((12, 4), (3, 3, 4, 5), (5, 16))
    torch.testing.assert_close(tucker2_product(A, core, B), W, atol=1e-4, rtol=1e-4)


def test_singular_values_are_in_the_right_factor():
    W = torch.randn(3, 3, 6, 8)
    _, _, B = tucker2(W, (6, 8))
    torch.testing.assert_close(B.norm(dim=1), torch.linalg.svdvals(W.reshape(-1, 8)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ranks", [(4, 6), (8, 12), (12, 4)])
def test_error_is_a_little_above_that_of_partial_tucker(ranks):
    """The excess, printed by pytest -s, comes from the authors' second SVD, which does not see the singular values."""
    W = sum(0.7**k * low_rank((3, 3, 24, 32), 2, 2) for k in range(12)).double()
    ours = (tucker2_product(*tucker2(W, ranks)) - W).norm() ** 2
    core, (A, B) = partial_tucker(W.numpy(), rank=list(ranks), modes=[2, 3], n_iter_max=200)[0]
    best = (torch.from_numpy(A @ core @ B.T) - W).norm() ** 2
    excess = float(ours / best - 1)
    print(f"ranks {ranks}: squared error {100 * excess:.2f} % above tensorly's")
    assert excess >= -1e-9


def test_a_zero_weight_has_zero_factors():
    A, core, B = tucker2(torch.zeros(3, 3, 4, 4), (2, 2))
    assert torch.isfinite(A).all()
    assert torch.equal(tucker2_product(A, core, B), torch.zeros(3, 3, 4, 4))


def test_coupled_finds_a_shared_part_and_own_parts():
    shared = low_rank((3, 3, 10, 12), 2, 2)
    Ws = [shared + 0.3 * low_rank((3, 3, 10, 12), 1, 1) for _ in range(4)]
    own, part = coupled_tucker2(Ws, (1, 1), (2, 2), iterations=100)
    errors = [
        (tucker2_product(*o) + tucker2_product(*part) - W).norm() / W.norm() for o, W in zip(own, Ws, strict=True)
    ]
    alone = [(tucker2_product(*tucker2(W, (2, 2))) - W).norm() / W.norm() for W in Ws]
    assert max(errors) < 0.5 * min(alone)


def test_coupled_alternates_as_said():
    Ws = [torch.randn(3, 3, 3, 3, dtype=torch.float64) for _ in range(3)]
    own, part = coupled_tucker2(Ws, (2, 2), (2, 3), iterations=2)
    shared = torch.zeros_like(Ws[0])
    for _ in range(2):
        parts = [tucker2_product(*tucker2(W - shared, (2, 2))) for W in Ws]
        shared = tucker2_product(*tucker2(sum(W - p for W, p in zip(Ws, parts, strict=True)) / 3, (2, 3)))
    torch.testing.assert_close(tucker2_product(*part), shared)
    for factors, expected in zip(own, parts, strict=True):
        torch.testing.assert_close(tucker2_product(*factors), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tucker2(torch.randn(3, 3, 4), (1, 1)), "needs weights"),
        (lambda: tucker2(torch.full((1, 1, 2, 2), float("nan")), (1, 1)), "NaN"),
        (lambda: tucker2(torch.randn(1, 1, 2, 2), (3, 1)), "between 1 and"),
        (lambda: coupled_tucker2([], (1, 1), (1, 1)), "at least one"),
        (lambda: coupled_tucker2([torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 3)], (1, 1), (1, 1)), "one shape"),
        (lambda: coupled_tucker2([torch.randn(1, 1, 2, 2)], (1, 1), (1, 1), iterations=0), "iterations"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
