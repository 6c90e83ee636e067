"""The alternation of Bi-JSVD: each shared factor in turn as the leading eigenvectors of what the other leaves.

With U held (orthonormal columns), the best V and all own factors leave the least of ``sum_n |(I - U U^T) W_n (I - V^T
V)|^2``, so V spans the leading subspace of ``sum_n W_n^T W_n - sum_n F_n^T F_n`` with ``F_n = U^T W_n``: a Gram matrix
made once, and a small correction. The residuals are never formed. Bases are kept as rows, which the libraries multiply
with a matrix in half the time that they take for columns.
"""

import torch
from torch import Tensor

from jointsvd.decomposition.subspaces import leading_eigenvectors, nearly_leading

_BLOCK = 8  # rows that the libraries multiply in the time of fewer
_GUARD = 4  # rows at least that are iterated with those asked for: the subspace converges faster
_GRAM_BLOCKS = 4


def alternate(W: Tensor, left_rank: int, right_rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U_n (N, rows, right_rank), V (right_rank, cols), U (rows, left_rank) and V_n (N, left_rank, cols) for W (N, rows,
    cols) in float64 after `iterations` of `bijsvd`, from zero.

    Products with W itself are in float64 in the first and the last iteration; between, if it was made of float32, in
    float32: an error of 1e-7 in a subspace is one of 1e-14 in what it captures.
    """
    rough = W.float() if torch.equal(W.float().to(W.dtype), W) else W
    right, left = _Shared(W.mT, right_rank), _Shared(W, left_rank)
    of_U = W.new_empty(0, W.shape[2])
    for iteration in range(iterations):
        used = W if iteration in (0, iterations - 1) else rough
        V = right.fit(of_U)
        of_V = _times(right.basis, used.flatten(0, 1).mT, right_rank)
        U = left.fit(of_V.reshape(-1, W.shape[1]))
        own_v = _times(left.basis, used, left_rank)
        of_U = own_v.flatten(0, 1)
    own_u = of_V.reshape(right_rank, len(W), -1).permute(1, 2, 0)
    return own_u, V, U.T, own_v - (U @ own_u) @ V


class _Shared:
    """One shared factor, and the subspace that is iterated for it. Ws: N matrices (N, n, m), which are to be
    approximated as a member of a subspace of the rows' space R^n."""

    def __init__(self, Ws: Tensor, rank: int):
        self.rank = rank
        self.gram = _gram(Ws)
        size = -(-(rank + _GUARD) // _BLOCK) * _BLOCK
        self.exact = 2 * size > len(self.gram)  # a Krylov space would be all of it
        self.size = min(size, len(self.gram))
        self.basis = self.basis_gram = self.gram.new_empty(0)

    def fit(self, F: Tensor) -> Tensor:
        """Orthonormal rows (rank, n) that capture most of ``gram - F^T F``: at first exactly, then no less than those
        before, by a step of `improved_subspace` that keeps its products with the Gram matrix for the next."""
        if self.exact or not self.basis.numel():
            S = self.gram - F.T @ F
            find = leading_eigenvectors if self.exact else nearly_leading
            self.basis = find(S, self.size).T.contiguous()
            self.basis_gram = self.basis @ self.gram
        if not self.exact:
            self._improve(F)  # the first basis too, which is exact but for float32
        return self.basis[: self.rank]

    def _improve(self, F: Tensor) -> None:
        products = self.basis_gram - (self.basis @ F.T) @ F
        block = torch.linalg.qr(products.T).Q
        Q, R = torch.linalg.qr(torch.cat([self.basis.T, block], dim=1))
        signs = R.diagonal()[: self.size].sign()[:, None]  # Q begins with the basis, but for signs
        space = Q.T.contiguous()
        more = space[self.size :]
        space_gram = torch.cat([signs * self.basis_gram, more @ self.gram])
        more_products = space_gram[self.size :] - (more @ F.T) @ F
        chosen = leading_eigenvectors(torch.cat([signs * products, more_products]) @ space.T, self.size).T
        self.basis, self.basis_gram = chosen @ space, chosen @ space_gram


def _times(basis: Tensor, W: Tensor, rank: int) -> Tensor:
    """``basis[:rank] @ W`` in the basis's dtype, for W of any."""
    rows = basis[: -(-rank // _BLOCK) * _BLOCK]
    return (rows.to(W.dtype) @ W)[..., :rank, :].to(basis.dtype)


def _gram(Ws: Tensor) -> Tensor:
    """sum over n of ``W_n W_n^T``, of which only the blocks on and below the diagonal are computed."""
    size = Ws.shape[1]
    gram, step = Ws.new_zeros(size, size), -(-size // _GRAM_BLOCKS)
    for start in range(0, size, step):
        end = min(start + step, size)
        for W in Ws:
            gram[start:end, :end].addmm_(W[start:end], W[:end].mT)
    return gram.tril() + gram.tril(-1).T
