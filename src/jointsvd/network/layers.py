"""Convolutions and linear layers as matrices, and the factor layers that replace them.

A conv weight (O, I, F1, F2) unfolds to the paper's matrix W of (F1*I) x (F2*O): row ``f1 * I + i``, column
``f2 * O + o``. ``W = U V`` is then a vertical conv F1 x 1 (I -> rank) followed by a horizontal conv 1 x F2 (rank -> O).
A linear layer is the 1 x 1 case: W = weight^T, two linear layers.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from jointsvd.network.copying import like
from jointsvd.network.interface import Factored, what_would_be_lost
from jointsvd.network.plan import AnyGroup, TuckerGroup

MatrixLayer = nn.Conv2d | nn.Linear  # what can be one matrix


def is_matrix(module: object) -> TypeGuard[MatrixLayer]:
    """Whether a module is an ungrouped conv or a linear layer; a subclass may compute something else."""
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def unfold(weight: Tensor) -> Tensor:
    """General unfolding of a weight: (O, I, F1, F2) -> (F1*I, F2*O), and (O, I) -> (I, O)."""
    if weight.ndim == 2:
        return weight.T
    out_channels, in_channels, height, width = weight.shape
    return weight.permute(2, 1, 3, 0).reshape(height * in_channels, width * out_channels)


def fold(W: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of that shape which unfolds to W."""
    if len(shape) == 2:
        return W.T.contiguous()
    out_channels, in_channels, height, width = shape
    return W.reshape(height, in_channels, width, out_channels).permute(3, 1, 0, 2).contiguous()


def fold_u(U: Tensor, height: int) -> Tensor:
    """Left factor (F1*I, rank) as the weight (rank, I, F1, 1) of a vertical conv."""
    return U.reshape(height, -1, U.shape[1]).permute(2, 1, 0).unsqueeze(3).contiguous()


def fold_v(V: Tensor, width: int) -> Tensor:
    """Right factor (rank, F2*O) as the weight (O, rank, 1, F2) of a horizontal conv."""
    return V.reshape(len(V), width, -1).permute(2, 0, 1).unsqueeze(2).contiguous()


def unfolded_shape(layer: MatrixLayer) -> tuple[int, int]:
    """(F1*I, F2*O), the shape of the matrix that a layer unfolds to."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    height, width = layer.kernel_size
    return height * layer.in_channels, width * layer.out_channels


class FactorPair(Factored):
    """``v(u(x))``: a layer whose matrix is the product of two factors of one rank; nothing stands between them.

    u: F1 x 1, I -> rank, with the vertical stride, padding and dilation of the conv it stands for.
    v: 1 x F2, rank -> O, with the horizontal ones and the bias. Both are linear where they stand for a linear layer.
    """

    def __init__(self, layer: MatrixLayer, rank: int, *, bias: bool):
        super().__init__()
        self._take_sizes(layer)
        self.u = _half(layer, 0, rank, bias=False)
        self.v = _half(layer, 1, rank, bias=bias)

    @property
    def with_bias(self) -> MatrixLayer:
        return self.v

    @property
    def weight(self) -> Tensor:
        W = unfold(self.u.weight) @ unfold(self.v.weight)
        if isinstance(self.u, nn.Linear) or isinstance(self.v, nn.Linear):
            return fold(W, W.T.shape)
        return fold(W, (self.v.out_channels, self.u.in_channels, self.u.kernel_size[0], self.v.kernel_size[1]))

    @property
    def ranks(self) -> tuple[int, ...]:
        return (self.u.weight.shape[0],)

    def forward(self, input: Tensor) -> Tensor:
        return self.v(self.u(input))


class TwoBranches(Factored):
    """``right(x) + left(x)``: ``W = U_n V + U V_n``; right shares its v with the group and has the bias, left its u.

    Computed as one pair of factors, ``[U_n, U] [V; V_n]``: two larger convs instead of four and a sum.
    """

    def __init__(self, layer: MatrixLayer, left_rank: int, right_rank: int):
        super().__init__()
        self._take_sizes(layer)
        self.right = FactorPair(layer, right_rank, bias=layer.bias is not None)
        self.left = FactorPair(layer, left_rank, bias=False)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.left.ranks + self.right.ranks

    @property
    def with_bias(self) -> MatrixLayer:
        return self.right.v

    @property
    def weight(self) -> Tensor:
        return self.right.weight + self.left.weight

    def joined(self) -> tuple[Tensor, Tensor]:
        """Weights of ``[U_n, U]`` and of ``[V; V_n]``."""
        right, left = self.right, self.left
        return torch.cat([right.u.weight, left.u.weight]), torch.cat([right.v.weight, left.v.weight], 1)

    def forward(self, input: Tensor) -> Tensor:
        u, v = self.joined()
        return _apply(self.right.v, _apply(self.right.u, input, u), v)


class TuckerConv2d(Factored):
    """``last(core(first(x)))``, a Tucker-2 conv: 1x1 I -> r_i; F1 x F2 r_i -> r_o with the geometry of the conv it
    stands for; 1x1 r_o -> O with its bias."""

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int, int], *, bias: bool):
        super().__init__()
        self._take_sizes(conv)
        in_rank, out_rank = ranks
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        geometry: dict[str, Any] = {name: getattr(conv, name) for name in names}
        self.first = nn.Conv2d(conv.in_channels, in_rank, 1, bias=False, **where)
        self.core = nn.Conv2d(in_rank, out_rank, bias=False, **geometry, **where)
        self.last = nn.Conv2d(out_rank, conv.out_channels, 1, bias=bias, **where)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.first.weight.shape[0], self.last.weight.shape[1]

    @property
    def with_bias(self) -> nn.Conv2d:
        return self.last

    @property
    def weight(self) -> Tensor:
        first, last = self.first.weight[..., 0, 0], self.last.weight[..., 0, 0]
        return torch.einsum("ai,bahw,ob->oihw", first, self.core.weight, last)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(self.core(self.first(input)))


class CoupledTuckerConv2d(Factored):
    """``own(x) + shared(x)``, two Tucker-2 convs (NC_CTD); the group shares all of the second, own has the bias."""

    def __init__(self, conv: nn.Conv2d, own_ranks: tuple[int, int], shared_ranks: tuple[int, int]):
        super().__init__()
        self._take_sizes(conv)
        self.own = TuckerConv2d(conv, own_ranks, bias=conv.bias is not None)
        self.shared = TuckerConv2d(conv, shared_ranks, bias=False)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.own.ranks + self.shared.ranks

    @property
    def with_bias(self) -> nn.Conv2d:
        return self.own.last

    @property
    def weight(self) -> Tensor:
        return self.own.weight + self.shared.weight

    def forward(self, input: Tensor) -> Tensor:
        return self.own(input) + self.shared(input)


FactorLayer = FactorPair | TwoBranches | TuckerConv2d | CoupledTuckerConv2d


def factor_layer(layer: MatrixLayer, group: AnyGroup) -> FactorLayer:
    """What stands for the member `layer` of `group`: random factors, the trained bias, device and dtype of `layer`;
    nothing is shared yet.

    Raises ValueError for a grouped conv, which is not one matrix, for a layer with hooks or a forward of its own, and
    for a linear layer in a Tucker group.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise ValueError(f"a conv with groups={layer.groups} is not one matrix; leave it out of the plan")
    if lost := what_would_be_lost(layer):
        raise ValueError(f"a layer with {lost} of its own would lose them; remove them, or leave it out of the plan")
    factors = _unfilled(layer, group)
    for parameter in factors.parameters():
        like(parameter, layer.weight)
    if layer.bias is not None:
        bias = nn.Parameter(layer.bias.detach().clone())
        factors.with_bias.bias = like(bias, layer.bias)
    return factors.train(layer.training)


def _unfilled(layer: MatrixLayer, group: AnyGroup) -> FactorLayer:
    bias = layer.bias is not None
    if isinstance(group, TuckerGroup):
        if isinstance(layer, nn.Linear):
            raise ValueError("Tucker-2 is for convs; leave linear layers out of the plan")
        if group.shared is None:
            return TuckerConv2d(layer, group.own, bias=bias)
        return CoupledTuckerConv2d(layer, group.own, group.shared)
    if group.left_rank and group.right_rank:
        return TwoBranches(layer, group.left_rank, group.right_rank)
    return FactorPair(layer, group.left_rank or group.right_rank, bias=bias)


def _apply(layer: MatrixLayer, x: Tensor, weight: Tensor) -> Tensor:
    """`layer` with another weight, of other ranks."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


def _half(layer: MatrixLayer, axis: int, rank: int, *, bias: bool) -> MatrixLayer:
    """The layer that works along one axis (0 vertical, I -> rank; 1 horizontal, rank -> O) with the geometry that
    `layer` has there."""
    where: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        sizes = (layer.in_features, rank) if axis == 0 else (rank, layer.out_features)
        return nn.Linear(*sizes, bias=bias, **where)

    def along(values: tuple[int, ...], elsewhere: int) -> tuple[int, int]:
        return (values[0], elsewhere) if axis == 0 else (elsewhere, values[1])

    channels = (layer.in_channels, rank) if axis == 0 else (rank, layer.out_channels)
    return nn.Conv2d(
        *channels,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        padding_mode=layer.padding_mode,
        bias=bias,
        **where,
    )
