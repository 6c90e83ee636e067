"""Layers that are a plain Conv2d in other clothes, dressed as one, so that all that knows Conv2d knows them: a Conv1d,
a transposed conv whose kernels do not overlap, and layers that use one Parameter.

Such a layer becomes a `Lifted` with a Conv2d or Linear `inner` in it, which a plan names: ``layers.3.inner``.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from copy import copy
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.network.interface import StandIn, what_would_be_lost
from jointsvd.network.layers import is_matrix
from jointsvd.network.replacing import replace

Kind = Literal["line", "blocks", "tied"]
INNER = "inner"


class Lifted(StandIn):
    """What computes the same as `layer` by a layer `inner` without a bias.

    line: a Conv1d as a conv of images that are one pixel wide. blocks: a ConvTranspose2d, of which each input pixel
    gives a block of the output by itself, as a 1x1 conv whose channels are then laid out as blocks. tied: inner is the
    layer that others have as well.
    """

    def __init__(self, layer: Any, kind: Kind, inner: nn.Module):
        super().__init__()
        self._take_sizes(layer)
        self.kind, self.inner = kind, inner
        self.own_bias = layer.bias

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.own_bias)

    def multiplied(self) -> Tensor:
        weight: Any = self.inner.weight
        if self.kind == "line":
            return weight.squeeze(3)
        if self.kind == "blocks":
            sizes = cast(Any, self)
            return weight[..., 0, 0].T.reshape(sizes.in_channels, sizes.out_channels, *sizes.kernel_size)
        return weight

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        if self.kind == "line":
            y = self.inner(input.unsqueeze(-1)).squeeze(-1)
        elif self.kind == "blocks":
            y = F.pixel_shuffle(self.inner(input), cast(Any, self).kernel_size[0])
        else:
            y = self.inner(input)
        if output_size is not None and tuple(output_size)[-2:] != tuple(y.shape[-2:]):
            raise ValueError(
                f"output_size={tuple(output_size)} needs blocks that overlap: leave the layer out of the plan"
            )
        if self.bias is None:
            return y
        return y + (self.bias if isinstance(self.inner, nn.Linear) else self.bias.reshape(-1, *[1] * (input.ndim - 2)))


def lift(model: nn.Module, planned: Collection[str] | None = None) -> nn.Module:
    """Lift the layers of `model` whose inner one a plan names, by default all that can be, in place. Returns it."""
    users: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for name, module in model.named_modules():
        if type(module) in (nn.Conv1d, nn.ConvTranspose2d, nn.Conv2d, nn.Linear):
            users[id(module.weight)].append((name, module))
    for layers in users.values():
        kind = _kind([layer for _, layer in layers])
        if kind and (planned is None or any(f"{name}.{INNER}" in planned for name, _ in layers)):
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
    if type(first) is nn.Conv1d:
        return "line" if first.groups == 1 else None
    if type(first) is nn.ConvTranspose2d:
        apart = first.kernel_size == first.stride and len(set(first.stride)) == 1
        plain = {*first.padding, *first.output_padding} == {0} and {*first.dilation, first.groups} == {1}
        return "blocks" if apart and plain else None
    return None


def _inner(layer: Any, kind: Kind) -> nn.Module:
    """The plain layer, without a bias."""
    old = layer.weight
    where: dict[str, Any] = {"bias": False, "device": "meta"}
    if kind == "tied":
        inner = copy(layer)
        inner._parameters = {"weight": old, "bias": None}
        return inner
    if kind == "line":
        names = ("kernel_size", "stride", "dilation")
        where |= {name: (getattr(layer, name)[0], 1) for name in names}
        where |= {"padding": layer.padding if isinstance(layer.padding, str) else (layer.padding[0], 0)}
        inner = nn.Conv2d(layer.in_channels, layer.out_channels, padding_mode=layer.padding_mode, **where)
        weight = old.detach().unsqueeze(3)
    else:
        inner = nn.Conv2d(layer.in_channels, layer.out_channels * layer.kernel_size[0] ** 2, 1, **where)
        weight = old.detach().flatten(1).T[..., None, None].contiguous()
    inner.weight = nn.Parameter(weight.clone(), requires_grad=old.requires_grad)
    vars(inner.weight).update(vars(old))
    return inner.train(layer.training)
