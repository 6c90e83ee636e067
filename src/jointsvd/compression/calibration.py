"""Calibration images run through a network, and batch norms measured again on them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.network.random_state import random_state_kept

Loader = Iterable[Any]  # of batches (N, ...), or of tuples whose first item is one


@random_state_kept()
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Loader) -> nn.Module:
    """Measure the running mean and variance of every batch norm again, in place, as the averages over the batches of
    `loader` (equal batches give exact averages). Nothing else trains or changes. Returns `model`.

    Right where the images are many training images, and what was done to the network is too much for `match_norms`: the
    statistics of the whole training take their place, so that few images, or images from elsewhere, destroy even a
    network that nothing was done to.

    Raises ValueError as `collect_statistics`.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with measured_again(norms) as tracked:
        for _ in run_batches(model, loader, training=tracked):
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
    model: nn.Module, loader: Loader, *, training: Iterable[nn.Module] = (), differentiable: bool = False
) -> Iterator[tuple[Tensor, Any]]:
    """(images, output) of each batch, on the model's device; all modules but those `training` in evaluation mode."""
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"calibration needs a model in float32, got {parameter.dtype}; call model.float()")
    nothing = True
    with _evaluating(model):
        for module in training:
            module.train()
        for batch in loader:
            images = beside(model, images_of(batch))
            nothing = False
            if not len(images) or not torch.isfinite(images).all():
                raise ValueError("a calibration batch is empty, or holds NaN or infinite values")
            if differentiable:
                images = images.detach().clone().requires_grad_()
            try:
                output = model(images)
            except RuntimeError as error:
                shape = tuple(images.shape)
                raise ValueError(
                    f"the model cannot run on a calibration batch {shape} of {images.dtype}: {error}"
                ) from error
            yield images, output
    if nothing:
        raise ValueError("the calibration loader is empty")


def beside(model: nn.Module, images: Tensor) -> Tensor:
    """`images` on the model's device. Raises ValueError if either is on the meta device, which holds no values."""
    device = next((parameter.device for parameter in model.parameters()), images.device)
    for what, where in (("the model", device), ("a calibration batch", images.device)):
        if where.type == "meta":
            raise ValueError(f"{what} is on the meta device, without values: calibration needs them on a real one")
    return images.to(device)


def images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"calibration needs batches of images as floats, or tuples that begin with one; got {got}")
    return images


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
