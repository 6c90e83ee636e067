"""What a network does on calibration data: second moments of its layers' inputs and of the gradients that come back to
their outputs, and batch-norm statistics measured again. Labels are never used."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.network.cost import Positions, usage
from jointsvd.network.layers import MatrixLayer, is_matrix
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept

Loader = Iterable[Any]  # of batches (N, ...), or of tuples whose first item is one


@dataclass(frozen=True)
class Statistics:
    """Of the layers of one network on calibration data; each mapping goes by the layer's name.

    inputs: second moment (F1*I, F1*I) of the vertical strips (F1 x I values) that the layer's matrix multiplies, summed
    over the positions of an image, averaged over images. outputs: second moment (O, O) of the gradients of the log
    probability at the layer's outputs, averaged over positions and images. positions: an image's outputs behind the
    layer's two factors (vertical, horizontal). flops: of an image, of the whole network.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    positions: Mapping[str, Positions]
    flops: int
    num_images: int

    def metric(self, name: str) -> tuple[Tensor, Tensor]:
        """(C, G) of the layer, halved so that the weighted error is a KL divergence. C (F1*I, F1*I), G (O, O): the same
        for each of the F2 columns of the kernel.

        Raises ValueError for a layer that was not seen.
        """
        if name not in self.inputs:
            raise ValueError(f"no statistics of {name!r}: it did not run on the calibration data")
        return self.inputs[name] / 2, self.outputs[name]


@random_state_kept()
@torch.enable_grad()
def collect_statistics(model: nn.Module, loader: Loader, *, seed: int = 0) -> Statistics:
    """Second moments at every ungrouped Conv2d and every Linear of `model` that runs, in evaluation mode.

    loader: batches, or tuples whose first item is one, each brought to the model's device. The gradients are those of
    the log probability of classes drawn (by `seed`) from the model's own predictions, a softmax over its last
    dimension, as for the Fisher information; `model` is left as it was. Raises ValueError for a loader that is empty or
    gives no images, for images that hold NaN, are on the meta device, of another dtype or shape than the model takes,
    for a model in half precision or on the meta device, and for one that returns no logits.
    """
    moments, copy = _Moments(), deepcopy(model).requires_grad_(False)
    moments.watch(copy)
    generator, num = torch.Generator().manual_seed(seed), 0
    batches = run_batches(copy, loader, differentiable=True)
    for images, output in bar(batches, "Measuring layers", total=length_hint(loader) or None):
        image = images[:1].detach()
        log_probs = F.log_softmax(_logits(output), -1)
        drawn = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(log_probs.device)
        log_probs.gather(1, drawn).sum().backward()
        num += len(images)
    return Statistics(*moments.averages(num), *usage(model, image), num)


class _Moments:
    """Second moments of the layers' inputs and of the gradients at their outputs, added up while a network runs."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.counts: Counter[str] = Counter()

    def watch(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if is_matrix(module):
                module.register_forward_hook(partial(self._record, name))

    def averages(self, num: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Over `num` images, and over positions and images; of the layers that a gradient came back to."""
        names = [name for name, what in self.sums if what == "out"]
        inputs = {name: self.sums[name, "in"] / num for name in names}
        return inputs, {name: self.sums[name, "out"] / self.counts[name] for name in names}

    def _record(self, name: str, layer: MatrixLayer, inputs: tuple[Tensor], output: Tensor) -> None:
        self._add(name, "in", strips(layer, inputs[0].detach()))
        channels = 1 if isinstance(layer, nn.Conv2d) else -1  # a linear layer may see images too, channels last
        if output.requires_grad:
            output.register_hook(
                lambda g: self._add(name, "out", g.movedim(channels, -1).reshape(-1, g.shape[channels]))
            )

    def _add(self, name: str, what: str, vectors: Tensor) -> None:
        moment, key = (vectors.T @ vectors).double(), (name, what)
        self.sums[key] = self.sums[key] + moment if key in self.sums else moment
        self.counts[name] += len(vectors) if what == "out" else 0


@random_state_kept()
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Loader) -> nn.Module:
    """Measure the running mean and variance of every batch norm again, in place, as the averages over the batches of
    `loader` (equal batches give exact averages). Nothing else trains or changes. Returns `model`.

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


def strips(layer: MatrixLayer, x: Tensor, *, axis: int = 0) -> Tensor:
    """What the rows of a layer's matrix multiply: (positions, F1*I), row f1 * I + i as in `unfold`. For a layer that is
    as wide as its kernel, axis=1 gives (positions, F2*I) along the rows of the image, column by column."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    size, step, dilation = (values[axis] for values in (layer.kernel_size, layer.stride, layer.dilation))
    if isinstance(layer.padding, str):
        total = dilation * (size - 1) if layer.padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = layer.padding[axis]
    if axis:
        x = x.transpose(2, 3)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, (0, 0, before, after), mode=mode)
    if layer.kernel_size[1 - axis] == 1:
        padded = padded[..., :: layer.stride[1 - axis]]  # wider kernels see every column
    span = padded.shape[2] - dilation * (size - 1)
    rows = [padded[:, :, f * dilation : f * dilation + span : step] for f in range(size)]
    return torch.stack(rows, 1).permute(0, 3, 4, 1, 2).reshape(-1, size * x.shape[1])


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[-1] < 2 or not output.requires_grad:
        raise ValueError("calibration needs a network that returns one tensor of two or more logits")
    return output.flatten(0, -2)


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
