"""Which input channels of a layer can say what all of them say: chosen one by one, and its matrix fitted to them.

Row ``f * I + i`` of W (F1*I, cols) multiplies what the layer sees of channel i in row f of its kernel. With some
channels alone, of rows K, the best matrix is ``C_KK^-1 C_K: W`` (least squares in the metric C of what the layer sees).
"""

from typing import cast

import torch
from torch import Tensor

from jointsvd.decomposition.metric import times, with_ridge


def rows_of(channels: Tensor, num: int, height: int) -> Tensor:
    """The rows, or columns, of a matrix that belong to some of `num` channels, for `height` rows of a kernel."""
    return (torch.arange(height, device=channels.device)[:, None] * num + channels).flatten()


def ordered(W: Tensor, C: Tensor, G: Tensor, height: int, most: int) -> list[int]:
    """`most` input channels, each the one that tells most about what the layer says, given those before it.

    W (F1*I, cols), C (F1*I, F1*I), G as in `decomposition.metric`; height: F1. "Tells": how much less of
    ``tr (W - A)^T C (W - A) G`` is left, by least squares.
    """
    M, num = cast(Tensor, with_ridge(C)), len(W) // height
    little = torch.eye(height, dtype=M.dtype, device=M.device) * float(M.diagonal().mean()) * 1e-9
    seen = M @ W
    S = seen @ times(G, seen.T)  # of what each row and each other tell together
    rows = rows_of(torch.arange(num, device=W.device), num, height).view(height, num).T
    order: list[int] = []
    for _ in range(most):
        index = rows[:, :, None], rows[:, None, :]
        gains = torch.linalg.solve(M[index] + little, S[index]).diagonal(dim1=1, dim2=2).sum(1)
        gains[order] = -torch.inf
        order.append(int(gains.argmax()))
        own = rows[order[-1]]
        A = torch.linalg.solve(M[own][:, own] + little, M[own]).T  # what all rows say like these, (F1*I, F1)
        told = A @ S[own]
        S = S - told - told.T + A @ S[own][:, own] @ A.T
        M = M - A @ M[own]
    return order


def fitted(W: Tensor, C: Tensor, rows: Tensor) -> Tensor:
    """The matrix for these rows alone, (rows, cols), that comes closest to W."""
    return torch.linalg.solve(cast(Tensor, with_ridge(C[rows][:, rows])), C[rows] @ W)


def left_out(W: Tensor, C: Tensor, G: Tensor, rows: Tensor, A: Tensor) -> float:
    """``tr (W - A)^T C (W - A) G``, where A has these rows alone."""
    D = W.clone()
    D[rows] -= A
    return float((times(C, D) * times(G, D.T).T).sum())
