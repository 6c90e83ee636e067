"""How much memory calibration images may take, and how many of them can pass at a time."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression.batches import num_images, part, size, tensors
from jointsvd.compression.calibration import TASK, Loader, evaluating
from jointsvd.compression.moments import FOLDS
from jointsvd.compression.task import Task, beside
from jointsvd.network.copying import copied

_GB = 2**30
_MEASURED = 6  # times all that modules return: a pass forward and its gradients, with strips beside them
_WALKED = 16  # times the most that a layer reads and returns: two networks, strips and their moments


def room(memory: float | None, device: torch.device) -> int:
    """Bytes of `memory` GB; of None, half of what is free on the device."""
    if memory is not None:
        return int(memory * _GB)
    return (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free()) // 2


def _free() -> int:
    """Bytes that this process may still take: of the machine's memory and of the limit on its group of processes."""
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [8 * _GB]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])]
    with suppress(OSError, ValueError):
        most, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(max(most - used, 0))
    return min(free)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one image. all: what modules return. most: what one of them reads and returns."""

    all: int
    most: int

    def measured(self, room: int) -> int:
        """Images that can pass forward and backward at a time."""
        return max(room // max(_MEASURED * self.all, 1), 1)

    def walked(self, room: int, num: int) -> int:
        """Images that can pass beside each other in two networks, of `num` that are to: all of them, or some whose
        folds are equal."""
        each = max(_WALKED * self.most, 1)
        return num if num * each <= room else max(room // 4 // each // FOLDS, 1) * FOLDS


@torch.no_grad()
def footprint(model: nn.Module, batch: Any, task: Task = TASK) -> Footprint:
    """Of the first image of a batch. What does not run takes nothing: the pass that matters says why."""
    copy, found = copied(model), [Footprint(0, 0)]

    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read, returned = (sum(map(_bytes, tensors(what))) for what in ([*args, *kwargs.values()], [output]))
        found.append(Footprint(found[-1].all + returned, max(found[-1].most, read + returned)))

    for module in copy.modules():
        if not any(module.children()):
            module.register_forward_hook(count, with_kwargs=True)
    with suppress(Exception), evaluating(copy):
        task.ask(copy, beside(copy, part(batch, slice(0, 1))))
    return found[-1]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Pieces:
    """The images of a loader, not too many at a time. first, num, whole: the place of the last piece in its batch, its
    images and those of the batch."""

    def __init__(self, loader: Loader, most: Callable[[Any], int], task: Task = TASK):
        """most: of the first batch, how many images can pass at a time."""
        self._loader, self._most, self._task = loader, most, task
        self.first = self.num = self.whole = 0

    def __iter__(self) -> Iterator[Any]:
        most = None
        for given in self._loader:
            batch = self._task.batch(given)
            most = most or self._most(batch)
            self.first, self.whole = 0, size(batch)
            for piece in pieces(batch, most):
                self.num = size(piece)
                yield piece
                self.first += size(piece)

    @property
    def num_images(self) -> int | None:
        return num_images(self._loader)


def measured(model: nn.Module, loader: Loader, memory: float | None, task: Task = TASK) -> Pieces:
    """Pieces that can pass forward and backward."""
    return Pieces(loader, lambda batch: footprint(model, batch, task).measured(room(memory, device_of(model))), task)


def passed(model: nn.Module, loader: Loader, memory: float | None, task: Task = TASK) -> Pieces:
    """Pieces that can pass beside another network's, a multiple of FOLDS images each."""
    return Pieces(
        loader, lambda batch: footprint(model, batch, task).walked(room(memory, device_of(model)), size(batch)), task
    )


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def pieces(batch: Any, most: int) -> Iterator[Any]:
    """A batch, cut where it has more than `most` images."""
    num = size(batch)
    if num <= most:
        yield batch
        return
    for first in range(0, num, most):
        yield part(batch, slice(first, first + most))
