"""Batches of any structure: a tensor, or tuples, lists and dictionaries of tensors that hold an image each along their
first dimension. What else they hold goes along as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor


def size(batch: Any) -> int:
    """Images in a batch: the length of its first tensor; 0 if it has none."""
    return next((len(tensor) for tensor in tensors(batch) if tensor.ndim), 0)


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors in it, in order."""
    found: list[Tensor] = []
    mapped(lambda tensor: found.append(tensor), batch)
    return iter(found)


def mapped(change: Callable[..., Any], batch: Any, *others: Any) -> Any:
    """The batch with each tensor changed; change: of a tensor and those at its place in batches like it."""
    if isinstance(batch, Tensor):
        return change(batch, *others)
    if isinstance(batch, Mapping):
        return {key: mapped(change, value, *(other[key] for other in others)) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [mapped(change, *values) for values in zip(batch, *others, strict=True)]
        return items if isinstance(batch, list) else type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    return batch


def part(batch: Any, chosen: slice | Tensor) -> Any:
    """Some images of a batch."""
    num = size(batch)
    index = chosen.cpu() if isinstance(chosen, Tensor) else chosen

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != num:
            return tensor
        return tensor[index.to(tensor.device) if isinstance(index, Tensor) else index]

    return mapped(cut, batch)


def joined(batches: Sequence[Any]) -> Any:
    """Batches of one structure as one batch."""
    num = size(batches[0])

    def join(tensor: Tensor, *others: Tensor) -> Tensor:
        return torch.cat([tensor, *others]) if tensor.ndim and len(tensor) == num else tensor

    return mapped(join, *batches)


def shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Of an image: what batches must agree on to be `joined`."""
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors(batch))


def num_images(loader: Any) -> int | None:
    """Images in a loader, where it tells without being read: a sequence of batches, a DataLoader of a sized dataset, or
    what has a `num_images` of its own. None where it does not."""
    if hasattr(loader, "num_images"):
        return loader.num_images
    if isinstance(loader, list | tuple):
        return sum(map(size, loader))
    if isinstance(loader, Tensor):
        return loader.shape[:2].numel()
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
