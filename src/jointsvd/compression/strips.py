"""The vertical strips of an image that the rows of a conv's matrix multiply, and their second moments."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.network.layers import MatrixLayer


def strips(layer: MatrixLayer, x: Tensor, *, axis: int = 0) -> Tensor:
    """What the rows of a layer's matrix multiply: (positions, F1*I), row f1 * I + i as in `unfold`. For a layer that is
    as wide as its kernel, axis=1 gives (positions, F2*I) along the rows of the image, column by column."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    size, step, dilation = (values[axis] for values in (layer.kernel_size, layer.stride, layer.dilation))
    padded = _padded(layer, x, axis)
    span = padded.shape[2] - dilation * (size - 1)
    rows = [padded[:, :, f * dilation : f * dilation + span : step] for f in range(size)]
    return torch.stack(rows, 1).permute(0, 3, 4, 1, 2).reshape(-1, size * x.shape[1])


def strip_products(layer: MatrixLayer, x: Tensor, others: Tensor | None = None) -> tuple[int, Tensor, Tensor | None]:
    """How many strips a of x (images, ...) there are, and the sums of ``a a^T`` and, with the strips b of others, of
    ``a b^T``, each (F1*I, F1*I)."""
    x, others = _float(x), None if others is None else _float(others)
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, nn.Linear) or not _overlapping(layer, x):
            a, b = strips(layer, x), None if others is None else strips(layer, others)
            return len(a), a.T @ a, None if b is None else a.T @ b
        rows, size = _rows(layer, x), layer.kernel_size[0]
        num = (len(rows) - size + 1) * rows.shape[1]
        return num, _blocks(rows, rows, size), None if others is None else _blocks(rows, _rows(layer, others), size)


def _overlapping(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether each strip begins a row below the last, in an image of many rows."""
    size = layer.kernel_size[0]
    return size > 1 and layer.stride[0] == layer.dilation[0] == 1 and x.shape[2] > 2 * size


def _rows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(rows of the padded image, positions in a row of all images, I)"""
    return _padded(layer, x, 0).permute(2, 0, 3, 1).flatten(1, 2).contiguous()


def _blocks(a: Tensor, b: Tensor, size: int) -> Tensor:
    """The sum over strips of `size` rows. Its block (f, g), of the rows f of a and g of b of all strips, has all but
    one term of the block (f - 1, g - 1)."""
    span = len(a) - size + 1
    blocks: dict[tuple[int, int], Tensor] = {}
    for f in range(size):
        for g in range(size):
            if a is b and g < f:
                blocks[f, g] = blocks[g, f].T
            elif f and g:
                blocks[f, g] = torch.addmm(blocks[f - 1, g - 1], a[f + span - 1].T, b[g + span - 1])
                blocks[f, g].addmm_(a[f - 1].T, b[g - 1], alpha=-1)
            else:
                blocks[f, g] = a[f : f + span].flatten(0, 1).T @ b[g : g + span].flatten(0, 1)
    return _grid([[blocks[f, g] for g in range(size)] for f in range(size)])


def _grid(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(list(row), 1) for row in blocks])


def _padded(layer: nn.Conv2d, x: Tensor, axis: int) -> Tensor:
    """x, turned on its side for axis=1, with its padding above and below; of a kernel of one column, the columns that
    are met."""
    if isinstance(layer.padding, str):
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = layer.padding[axis]
    if axis:
        x = x.transpose(2, 3)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, (0, 0, before, after), mode=mode)
    if layer.kernel_size[1 - axis] == 1:
        padded = padded[..., :: layer.stride[1 - axis]]  # wider kernels see every column
    return padded


def _float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()  # half precision under autocast
