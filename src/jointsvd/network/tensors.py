"""The tensors of a network, each once: a shared factor stands in it under several names."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_log = logging.getLogger(__name__)


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


def check_shapes(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError, with the file's `name`, unless `found` are names and shapes of the `expected` tensors."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"{name} was saved from another architecture: it lacks {sorted(missing)[:3]} and has unknown "
            f"{sorted(extra)[:3]} ({len(missing)} and {len(extra)} in all)"
        )
    for key, tensor in expected.items():
        if tuple(tensor.shape) != tuple(found[key]):
            raise ValueError(
                f"{name} was saved from another architecture: {key} has shape {tuple(found[key])}, "
                f"this network needs {tuple(tensor.shape)}"
            )


def check_numbers(
    name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, finite: bool = True
) -> None:
    """Raises ValueError, with the file's `name`, for numbers in `found` that the network cannot compute with: of
    another kind than the `expected` ones or, if `finite`, NaN or infinite (buffers may be minus infinity, in masks).
    Another precision is allowed, and said in a warning."""
    others = set()
    for key, tensor in found.items():
        wanted, dtype = expected[key], tensor.dtype
        if dtype != wanted.dtype and not (dtype in FLOATS and wanted.dtype in FLOATS):
            raise ValueError(f"{name} holds {dtype} in {key}, where the network has {wanted.dtype}; convert it first")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{name} holds no dense tensor in {key}; convert it first")
        if finite and not _is_finite(tensor, mask=not isinstance(wanted, nn.Parameter)):
            raise ValueError(
                f"{name} holds NaN or infinite values in {key}: its training diverged, or it is damaged; take another "
                "file"
            )
        others |= {dtype} - {wanted.dtype}
    if others:
        _log.warning("%s holds weights in %s, not in the network's precision", name, " and ".join(map(str, others)))


def _is_finite(tensor: Tensor, *, mask: bool) -> bool:
    finite = tensor.isfinite()
    return bool((finite | tensor.isneginf() if mask and tensor.is_floating_point() else finite).all())
