"""Layers that are plain Conv2d in other clothes, dressed as such, so that all that knows Conv2d knows them: a Conv1d, a
Conv3d, a transposed conv whose kernels do not overlap, a conv of few groups, and layers that use one Parameter.

Such a layer becomes a `Lifted` with a Conv2d or Linear `inner` in it, which a plan names: ``layers.3.inner``, or
``layers.3.inner.0`` for the first of several groups.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from copy import copy
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.network.interface import StandIn, what_would_be_lost
from jointsvd.network.layers import is_matrix
from jointsvd.network.replacing import replace

Kind = Literal["line", "volume", "blocks", "groups", "tied"]
_MOST_GROUPS = 8  # each a conv by itself, which takes time


class Lifted(StandIn):
    """What computes the same as `layer` by a layer `inner` without a bias.

    line: a Conv1d as a conv of images that are one pixel wide. volume: a Conv3d as a conv of the slices of each
    output, whose channels are those of the slices that it reads. groups: each as a conv by itself. blocks: a
    ConvTranspose2d, of which each input pixel gives a block of the output by itself, as a 1x1 conv whose channels
    are then laid out as blocks. tied: inner is the layer that others have as well.
    """

    def __init__(self, layer: Any, kind: Kind, inner: nn.Module):
        super().__init__()
        self._take_sizes(layer)
        self.kind, self.inner = kind, inner
        self.own_bias = layer.bias

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.own_bias)

    @property
    def weight(self) -> Tensor:
        own: Any = self
        if self.kind == "groups":
            return torch.cat([conv.weight for conv in own.inner])
        weight: Tensor = own.inner.weight
        if self.kind == "line":
            return weight.squeeze(3)
        if self.kind == "volume":
            return weight.unflatten(1, (own.in_channels, own.kernel_size[0]))
        if self.kind == "blocks":
            return weight[..., 0, 0].T.reshape(own.in_channels, own.out_channels, *own.kernel_size)
        return weight

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        y = self._without_bias(input)
        if output_size is not None and tuple(output_size)[-2:] != tuple(y.shape[-2:]):
            raise ValueError(f"output_size={tuple(output_size)} is larger than the blocks: leave the layer dense")
        if self.bias is None:
            return y
        return y + (self.bias if isinstance(self.inner, nn.Linear) else self.bias.reshape(-1, *[1] * (input.ndim - 2)))

    def _without_bias(self, x: Tensor) -> Tensor:
        inner: Any = self.inner
        match self.kind:
            case "line":
                return inner(x.unsqueeze(-1)).squeeze(-1)
            case "volume":
                slices = self._slices(x)
                return inner(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]).transpose(1, 2)
            case "blocks":
                return F.pixel_shuffle(inner(x), cast(Any, self).kernel_size[0])
            case "groups":
                return torch.cat([conv(part) for conv, part in zip(inner, x.chunk(len(inner), 1), strict=True)], 1)
        return inner(x)

    def _slices(self, x: Tensor) -> Tensor:
        """(N, outputs along the depth, I * kernel depth, H, W) of volumes (N, I, D, H, W)."""
        own: Any = self
        size, step, dilation, around = (
            values[0] for values in (own.kernel_size, own.stride, own.dilation, own.padding)
        )
        x = F.pad(x, (0, 0, 0, 0, around, around))
        span = x.shape[2] - dilation * (size - 1)
        read = [x[:, :, f * dilation : f * dilation + span : step] for f in range(size)]
        return torch.stack(read, 2).permute(0, 3, 1, 2, 4, 5).flatten(2, 3)


def outer(name: str) -> str:
    """Of what a plan names: the layer in the dense network."""
    return re.sub(r"\.inner(\.\d+)?$", "", name)


def lift(model: nn.Module, planned: Collection[str] | None = None) -> nn.Module:
    """Lift the layers of `model` whose inner one a plan names, by default all that can be, in place. Returns it."""
    users: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    wanted = None if planned is None else {outer(name) for name in planned if outer(name) != name}
    for name, module in model.named_modules():
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear):
            users[id(module.weight)].append((name, module))
    for layers in users.values():
        kind = _kind([layer for _, layer in layers])
        if kind and (wanted is None or wanted & {name for name, _ in layers}):
            inner = _inner(layers[0][1], kind)
            for _, layer in layers:
                replace(model, layer, Lifted(layer, kind, inner).train(layer.training))
    return model


def _kind(layers: Sequence[Any]) -> Kind | None:
    """Of layers with one Parameter; None if nothing is to be lifted."""
    first = layers[0]
    if any(what_would_be_lost(layer) for layer in layers):
        return None
    if len(layers) > 1:
        names = ("stride", "padding", "dilation", "padding_mode")
        alike = all(getattr(layer, name, None) == getattr(first, name, None) for layer in layers for name in names)
        return "tied" if alike and all(type(layer) is type(first) and is_matrix(layer) for layer in layers) else None
    if type(first) is nn.Conv1d and first.groups == 1:
        return "line"
    if type(first) is nn.Conv2d and 1 < first.groups <= _MOST_GROUPS and first.in_channels > first.groups:
        return "groups"
    if type(first) is nn.Conv3d and first.groups == 1 and first.padding_mode == "zeros":
        return None if isinstance(first.padding, str) else "volume"
    if type(first) is nn.ConvTranspose2d:
        apart = first.kernel_size == first.stride and len(set(first.stride)) == 1
        plain = {*first.padding, *first.output_padding} == {0} and {*first.dilation, first.groups} == {1}
        return "blocks" if apart and plain else None
    return None


def _inner(layer: Any, kind: Kind) -> nn.Module:
    """The plain layer, without a bias."""
    old: Tensor = layer.weight
    padding: Any = getattr(layer, "padding", 0)
    match kind:
        case "tied":
            inner = copy(layer)
            inner._parameters = {"weight": old, "bias": None}
            return inner
        case "groups":
            parts = old.detach().chunk(layer.groups)
            return nn.ModuleList(_conv(layer, part, layer.stride, padding, layer.dilation) for part in parts)
        case "line":
            padding = padding if isinstance(padding, str) else (padding[0], 0)
            return _conv(layer, old.unsqueeze(3), (*layer.stride, 1), padding, (*layer.dilation, 1))
        case "volume":
            return _conv(layer, old.flatten(1, 2), layer.stride[1:], padding[1:], layer.dilation[1:])
    return _conv(layer, old.flatten(1).T[..., None, None], (1, 1), 0, (1, 1))


def _conv(layer: Any, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> nn.Conv2d:
    """A conv of that weight, else like `layer`."""
    outputs, inputs, *size = weight.shape
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": layer.padding_mode}
    conv = nn.Conv2d(inputs, outputs, tuple(size), bias=False, device="meta", **geometry)  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    vars(conv.weight).update(vars(layer.weight))
    return conv.train(layer.training)
