"""Convolutions as matrices, and the factor layers that replace them.

A conv weight (O, I, F1, F2) unfolds to the paper's matrix W of (F1*I) x (F2*O): row ``f1 * I + i``, column
``f2 * O + o``. ``W = U V`` is then a vertical conv F1 x 1 (I -> rank) followed by a horizontal conv 1 x F2 (rank -> O).
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from jointsvd.plan import AnyGroup, TuckerGroup


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

    @property
    def ranks(self) -> tuple[int, ...]:
        return (self.u.weight.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.u(x))


class TwoBranchConv2d(nn.Module):
    """``right(x) + left(x)``: ``W = U_n V + U V_n``; right shares its v with the group and has the bias, left its u."""

    def __init__(self, conv: nn.Conv2d, left_rank: int, right_rank: int):
        super().__init__()
        self.right = FactorizedConv2d(conv, right_rank, bias=conv.bias is not None)
        self.left = FactorizedConv2d(conv, left_rank, bias=False)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.left.ranks + self.right.ranks

    def forward(self, x: Tensor) -> Tensor:
        return self.right(x) + self.left(x)


class TuckerConv2d(nn.Sequential):
    """``last(core(first(x)))``, a Tucker-2 conv: 1x1 I -> r_i; F1 x F2 r_i -> r_o with the geometry of the conv it
    stands for; 1x1 r_o -> O with its bias."""

    first: nn.Conv2d
    core: nn.Conv2d
    last: nn.Conv2d

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int, int], *, bias: bool):
        in_rank, out_rank = ranks
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        geometry: dict[str, Any] = {name: getattr(conv, name) for name in names}
        first = nn.Conv2d(conv.in_channels, in_rank, 1, bias=False, **where)
        core = nn.Conv2d(in_rank, out_rank, bias=False, **geometry, **where)
        last = nn.Conv2d(out_rank, conv.out_channels, 1, bias=bias, **where)
        super().__init__(OrderedDict(first=first, core=core, last=last))

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.first.weight.shape[0], self.last.weight.shape[1]


class CoupledTuckerConv2d(nn.Module):
    """``own(x) + shared(x)``, two Tucker-2 convs (NC_CTD); the group shares all of the second, own has the bias."""

    def __init__(self, conv: nn.Conv2d, own_ranks: tuple[int, int], shared_ranks: tuple[int, int]):
        super().__init__()
        self.own = TuckerConv2d(conv, own_ranks, bias=conv.bias is not None)
        self.shared = TuckerConv2d(conv, shared_ranks, bias=False)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.own.ranks + self.shared.ranks

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.shared(x)


FactorLayer = FactorizedConv2d | TwoBranchConv2d | TuckerConv2d | CoupledTuckerConv2d


def factor_layer(conv: nn.Conv2d, group: AnyGroup) -> FactorLayer:
    """The factor layer that stands for the member `conv` of `group`: random factors, the trained bias of `conv`, its
    device and dtype; nothing is shared yet.

    Raises ValueError for a grouped conv, which is not one matrix.
    """
    if conv.groups != 1:
        raise ValueError(f"a conv with groups={conv.groups} is not one matrix; leave it out of the plan")
    layer, last = _unfilled(conv, group)
    if conv.bias is not None:
        last.bias = nn.Parameter(conv.bias.detach().clone())
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)


def _unfilled(conv: nn.Conv2d, group: AnyGroup) -> tuple[FactorLayer, nn.Conv2d]:
    """The layer, and the conv in it that has the bias."""
    bias = conv.bias is not None
    if isinstance(group, TuckerGroup):
        if group.shared is None:
            tucker = TuckerConv2d(conv, group.own, bias=bias)
            return tucker, tucker.last
        coupled = CoupledTuckerConv2d(conv, group.own, group.shared)
        return coupled, coupled.own.last
    if group.left_rank and group.right_rank:
        two = TwoBranchConv2d(conv, group.left_rank, group.right_rank)
        return two, two.right.v
    pair = FactorizedConv2d(conv, group.left_rank or group.right_rank, bias=bias)
    return pair, pair.v


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
