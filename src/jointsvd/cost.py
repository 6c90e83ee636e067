"""What a network costs: parameters, compression factor, FLOPs."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


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
    copy = deepcopy(model).to("meta").eval()
    dtype = next((parameter.dtype for parameter in copy.parameters()), torch.float32)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy(torch.empty(1, *input_size, device="meta", dtype=dtype))
    return counter.get_total_flops()
