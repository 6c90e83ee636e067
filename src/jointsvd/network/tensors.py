"""The tensors of a network, each once: a shared factor stands in it under several names."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor under its first name only."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (key, tensor))
    return dict(unique.values())


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the values of `unique_tensors` of one like it, on its own device, in place. Tensors on the meta
    device, which cannot hold any, are replaced by those given.

    Raises ValueError for a tensor on the meta device that is not in the state dict.
    """
    replaced: dict[int, tuple[Tensor, Tensor]] = {}
    for key, tensor in unique_tensors(model).items():
        if not tensor.is_meta:
            tensor.data = torch.empty_like(tensor, dtype=tensors[key].dtype).copy_(tensors[key])  # keeps its layout
            continue
        parameter = isinstance(tensor, nn.Parameter)
        new = nn.Parameter(tensors[key], requires_grad=tensor.requires_grad) if parameter else tensors[key]
        replaced[id(tensor)] = (tensor, new)
    for name, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            own.update({key: replaced[id(tensor)][1] for key, tensor in own.items() if id(tensor) in replaced})
        for key, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, Tensor) and value.is_meta:
                where = ".".join(filter(None, (name, key)))
                raise ValueError(
                    f"{where} is not saved with the weights, and has no value in a network on the meta device: build "
                    "the dense network on the CPU"
                )
