"""Convolutions as matrices, and the factor layers that replace them.

A conv weight (O, I, F1, F2) unfolds to the paper's matrix W of (F1*I) x (F2*O): row ``f1 * I + i``, column
``f2 * O + o``. ``W = U V`` is then a vertical conv F1 x 1 (I -> rank) followed by a horizontal conv 1 x F2 (rank -> O).
"""

from torch import Tensor, nn


def unfold(weight: Tensor) -> Tensor:
    """General unfolding of a conv weight: (O, I, F1, F2) -> (F1*I, F2*O)."""
    out_channels, in_channels, height, width = weight.shape
    return weight.permute(2, 1, 3, 0).reshape(height * in_channels, width * out_channels)


def fold_u(U: Tensor, height: int) -> Tensor:
    """Left factor (F1*I, rank) as the weight (rank, I, F1, 1) of a vertical conv."""
    return U.reshape(height, -1, U.shape[1]).permute(2, 1, 0).unsqueeze(3).contiguous()


def fold_v(V: Tensor, width: int) -> Tensor:
    """Right factor (rank, F2*O) as the weight (O, rank, 1, F2) of a horizontal conv."""
    return V.reshape(len(V), width, -1).permute(2, 0, 1).unsqueeze(2).contiguous()


def unfolded_shape(conv: nn.Conv2d) -> tuple[int, int]:
    """(F1*I, F2*O), the shape of the matrix that `conv` unfolds to."""
    height, width = conv.kernel_size
    return height * conv.in_channels, width * conv.out_channels


class FactorizedConv2d(nn.Module):
    """``v(u(x))``: a conv whose matrix is the product of two factors of one rank; nothing stands between them.

    u: F1 x 1, I -> rank, with the vertical stride, padding and dilation of the conv it stands for.
    v: 1 x F2, rank -> O, with the horizontal ones and the bias.
    """

    def __init__(self, conv: nn.Conv2d, rank: int, *, bias: bool):
        super().__init__()
        self.u = _half(conv, 0, conv.in_channels, rank, bias=False)
        self.v = _half(conv, 1, rank, conv.out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.u(x))


class TwoBranchConv2d(nn.Module):
    """``right(x) + left(x)``: ``W = U_n V + U V_n``; right shares its v with the group and has the bias, left its u."""

    def __init__(self, conv: nn.Conv2d, left_rank: int, right_rank: int):
        super().__init__()
        self.right = FactorizedConv2d(conv, right_rank, bias=conv.bias is not None)
        self.left = FactorizedConv2d(conv, left_rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.right(x) + self.left(x)


FactorLayer = FactorizedConv2d | TwoBranchConv2d


def factor_layer(conv: nn.Conv2d, left_rank: int, right_rank: int) -> FactorLayer:
    """The factor layer that stands for `conv`: random factors, the trained bias of `conv`, its device and dtype.

    Raises ValueError for a grouped conv, which is not one matrix.
    """
    if conv.groups != 1:
        raise ValueError(f"a conv with groups={conv.groups} is not one matrix; leave it out of the plan")
    layer: FactorLayer
    if left_rank and right_rank:
        layer = TwoBranchConv2d(conv, left_rank, right_rank)
    else:
        layer = FactorizedConv2d(conv, left_rank or right_rank, bias=conv.bias is not None)
    if conv.bias is not None:
        last = layer.right.v if isinstance(layer, TwoBranchConv2d) else layer.v
        last.bias = nn.Parameter(conv.bias.detach().clone())
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)


def _half(conv: nn.Conv2d, axis: int, in_channels: int, out_channels: int, *, bias: bool) -> nn.Conv2d:
    """The conv that works along one axis (0 vertical, 1 horizontal) with the geometry `conv` has there."""

    def along(values: tuple[int, ...], elsewhere: int) -> tuple[int, int]:
        return (values[0], elsewhere) if axis == 0 else (elsewhere, values[1])

    return nn.Conv2d(
        in_channels,
        out_channels,
        along(conv.kernel_size, 1),
        stride=along(conv.stride, 1),
        padding=conv.padding if isinstance(conv.padding, str) else along(conv.padding, 0),
        dilation=along(conv.dilation, 1),
        padding_mode=conv.padding_mode,
        bias=bias,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
