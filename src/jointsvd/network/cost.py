"""What a network costs: parameters, compression factor, FLOPs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from jointsvd.network.copying import copied
from jointsvd.network.interface import input_of
from jointsvd.network.layers import MatrixLayer, is_matrix
from jointsvd.network.random_state import random_state_kept

Positions = tuple[float, float]  # outputs behind a layer's two factors, vertical and horizontal


def num_parameters(model: nn.Module, *, batch_norm: bool = True) -> int:
    """Number of parameters, a shared one counted once; without those of batch norm layers if `batch_norm` is False."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if not batch_norm:
        norms = nn.ModuleList(module for module in model.modules() if isinstance(module, _BatchNorm))
        total -= sum(parameter.numel() for parameter in norms.parameters())
    return total


def compression_factor(dense: nn.Module, compressed: nn.Module, *, batch_norm: bool = True) -> float:
    """CF, dense / compressed parameters (eq. 6). The paper leaves batch norm out on both sides: `batch_norm=False`."""
    return num_parameters(dense, batch_norm=batch_norm) / num_parameters(compressed, batch_norm=batch_norm)


def num_flops(model: nn.Module, input_size: Sequence[int]) -> int:
    """FLOPs of one forward pass of one image: 2 for each multiply-add of convolutions and matrix products.

    input_size: (channels, height, width). Nothing is computed: a copy of the model runs on the meta device.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    return usage(copied(model).to("meta"), torch.empty(1, *input_size, device="meta", dtype=dtype))[1]


@random_state_kept()
@torch.no_grad()
def usage(
    model: nn.Module, image: Any, ask: Callable[[nn.Module, Any], Any] = nn.Module.__call__
) -> tuple[dict[str, Positions], int]:
    """How often a forward pass of one image (1, ...) uses each ungrouped Conv2d and each Linear, and the FLOPs of all
    of it. On the meta device nothing is computed. ask: runs a network on an image, by default ``model(image)``."""
    found: dict[str, Positions] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(layer: MatrixLayer, args: Any, kwargs: Any, output: Tensor) -> None:
            positions = output.numel() / layer.weight.shape[0]
            wider = input_of(args, kwargs).shape[-1] / output.shape[-1] if isinstance(layer, nn.Conv2d) else 1
            before = found.get(name, (0, 0))
            found[name] = (before[0] + positions * wider, before[1] + positions)

        return record

    copy = copied(model).eval()
    for name, module in copy.named_modules():
        if is_matrix(module):
            module.register_forward_hook(recorder(name), prepend=True, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        ask(copy, image)
    return found, counter.get_total_flops()
