"""What other code reads of a conv or linear layer, kept where factors stand in its place."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size")
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode", "transposed", "output_padding")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class StandIn(nn.Module, ABC):
    """Has the sizes and the geometry of the layer that it stands for (in_features, kernel_size, ...), and as `weight`
    and `bias` what this layer would have: the weight is a product, computed when it is read, with no parameter of its
    own behind it. shares: the members of its group, and the layers in it whose weights these have in common."""

    shares: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def _take_sizes(self, layer: nn.Module) -> None:
        for name in (*_SIZES, *_GEOMETRY):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """Of the layer that computes the same."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """The trained bias, where the layer has one."""


class Factored(StandIn):
    """Has factors in the place of a layer, and the bias in one of them."""

    @property
    @abstractmethod
    def with_bias(self) -> Any:
        """The layer in it that has the bias."""

    @property
    def bias(self) -> Tensor | None:
        return self.with_bias.bias


def what_would_be_lost(layer: nn.Module) -> str:
    """What somebody put on this one layer, which another in its place would not do: hooks, a forward of its own; "" if
    nothing."""
    if "forward" in vars(layer):
        return "a patched forward"
    return "hooks" if any(getattr(layer, name) for name in _HOOKS) else ""


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a conv or linear layer was called with, as its hooks get it."""
    return args[0] if args else kwargs["input"]
