"""Calibration images run through a network, and batch norms measured again on them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.compression.batches import mapped, size
from jointsvd.compression.task import Task, beside, differentiable
from jointsvd.network.random_state import random_state_kept

Loader = Iterable[Any]  # of batches (N, ...), or of tuples whose first item is one; of others with a `Task`'s forward
TASK = Task()  # images in, logits out


@random_state_kept()
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Loader, task: Task = TASK) -> nn.Module:
    """Measure the running mean and variance of every batch norm again, in place, as the averages over the batches of
    `loader` (equal batches give exact averages). Nothing else trains or changes. Returns `model`.

    Right where the images are many training images, and what was done to the network is too much for `match_norms`: the
    statistics of the whole training take their place, so that few images, or images from elsewhere, destroy even a
    network that nothing was done to.

    Raises ValueError as `collect_statistics`.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with measured_again(norms) as tracked:
        for _ in run_batches(model, loader, task, training=tracked):
            pass
    return model


@contextmanager
def measured_again(norms: Iterable[_BatchNorm]) -> Iterator[list[_BatchNorm]]:
    """Those of `norms` that track statistics, which forget them and average what passes until the end; if that fails,
    they have their old ones again."""
    tracked = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in tracked]
    before = [deepcopy(norm.state_dict()) for norm in tracked]
    for norm in tracked:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's sign for a cumulative average
    try:
        yield tracked
    except BaseException:
        for norm, state in zip(tracked, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(tracked, momenta, strict=True):
            norm.momentum = momentum


def run_batches(
    model: nn.Module,
    loader: Loader,
    task: Task = TASK,
    *,
    training: Iterable[nn.Module] = (),
    gradients: bool = False,
    during: Callable[[int], AbstractContextManager[None]] = lambda num: nullcontext(),
) -> Iterator[tuple[Any, Any]]:
    """(batch, output) of each batch, on the model's device; all modules but those `training` in evaluation mode.

    gradients: whether they are to come back to the batch. during: entered, with the number of images, while the network
    runs.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"calibration needs a model in float32, got {parameter.dtype}; call model.float()")
    nothing = True
    with evaluating(model):
        for module in training:
            module.train()
        for given in loader:
            batch = beside(model, task.batch(given))
            nothing = False
            asked = differentiable(batch) if gradients else mapped(torch.clone, batch)  # it may change in place
            with during(size(batch)):
                output = task.run(model, asked)
            yield batch, output
    if nothing:
        raise ValueError("the calibration loader is empty")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; each module has its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
