"""What a network does on calibration data: second moments of its layers' inputs, how much each layer's error matters,
and batch-norm statistics measured again. Labels are never used."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.layers import MatrixLayer, fold, is_matrix, unfold
from jointsvd.weighted import matrix_power, with_ridge

Loader = Iterable[Any]  # of batches (N, ...), or of tuples whose first item is one
PROBE_ERROR = 0.1  # share of a layer's output energy that a probe takes away


@dataclass(frozen=True)
class Statistics:
    """Of the layers of one network on calibration data; each mapping goes by the layer's name.

    moments: second moment (F1*I, F1*I) of the vertical strips (F1 x I values) that the layer's matrix multiplies,
    summed over the positions of an image and averaged over images. weights: what a unit of squared output error of the
    layer costs; 1 unless measured. positions: an image's outputs behind the layer's two factors (vertical, horizontal).
    """

    moments: Mapping[str, Tensor]
    weights: Mapping[str, float]
    positions: Mapping[str, tuple[float, float]]
    num_images: int

    def weighted_moment(self, name: str) -> Tensor:
        """Raises ValueError for a layer that was not seen."""
        if name not in self.moments:
            raise ValueError(f"no statistics of {name!r}: it did not run on the calibration data")
        return self.moments[name] * self.weights[name]


@torch.no_grad()
def collect_statistics(model: nn.Module, loader: Loader) -> Statistics:
    """Second moments of the inputs of every ungrouped Conv2d and every Linear of `model` that runs.

    loader: batches on the model's device, or tuples whose first item is one. The model runs in evaluation mode and is
    left as it was. Raises ValueError for a loader that is empty or gives no images, for images that hold NaN, are on
    another device, of another dtype or shape than the model takes, and for a model in half precision.
    """
    sums: dict[str, Tensor] = {}
    positions: Counter[tuple[str, int]] = Counter()

    def recorder(name: str) -> Callable[..., None]:
        def record(layer: MatrixLayer, inputs: tuple[Tensor], output: Tensor) -> None:
            strips = vertical_strips(layer, inputs[0])
            moment = (strips.T @ strips).double()
            sums[name] = sums[name] + moment if name in sums else moment
            outputs = output.numel() // layer.weight.shape[0]
            wider = inputs[0].shape[-1] / output.shape[-1] if output.ndim == 4 else 1
            positions.update({(name, 0): outputs * wider, (name, 1): outputs})

        return record

    layers = {name: module for name, module in model.named_modules() if is_matrix(module)}
    handles = [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
    try:
        num = sum(len(images) for images, _ in _run(model, loader))
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: total / num for name, total in sums.items()}
    counts = {name: (positions[name, 0] / num, positions[name, 1] / num) for name in moments}
    return Statistics(moments, dict.fromkeys(moments, 1.0), counts, num)


@torch.no_grad()
def measure_weights(model: nn.Module, statistics: Statistics, loader: Loader, *, num_images: int = 128) -> Statistics:
    """`statistics` with measured weights: the KL divergence of the network's output (a softmax over its last dimension)
    for a unit of squared output error of each layer, by a low-rank probe of one layer at a time.

    num_images: how many of the loader's images the probes see. Raises ValueError as `collect_statistics`, and for a
    model whose output is no tensor of at least two columns.
    """
    batches = list(_first_images(loader, num_images))
    dense = [F.log_softmax(_logits(output), -1) for _, output in _run(model, batches)]
    probe = deepcopy(model)
    weights = {}
    for name, moment in statistics.moments.items():
        layer: Any = probe.get_submodule(name)
        weight = layer.weight.detach().clone()
        layer.weight.data = _probe(layer, moment)
        change = unfold(layer.weight - weight).double()
        error = float((change * (moment @ change)).sum())
        outputs = [F.log_softmax(_logits(output), -1) for _, output in _run(probe, batches)]
        layer.weight.data = weight
        kl = F.kl_div(torch.cat(outputs), torch.cat(dense), reduction="batchmean", log_target=True)
        weights[name] = max(float(kl), 0.0) / error if error > 0 else 0.0
    return replace(statistics, weights=weights)


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Loader) -> nn.Module:
    """Measure the running mean and variance of every batch norm again, in place, as the averages over the batches of
    `loader` (equal batches give exact averages). Nothing else trains or changes. Returns `model`.

    Raises ValueError as `collect_statistics`.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's sign for a cumulative average
    try:
        for _ in _run(model, loader, training=norms):
            pass
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def vertical_strips(layer: MatrixLayer, x: Tensor) -> Tensor:
    """What the rows of a layer's matrix multiply: (positions, F1*I), row f1 * I + i as in `unfold`."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    (height, width), (step, across), (dilation, _) = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer.padding, str):
        total = dilation * (height - 1) if layer.padding == "same" else 0
        top, bottom = total // 2, total - total // 2
    else:
        top = bottom = layer.padding[0]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, (0, 0, top, bottom), mode=mode)
    if width == 1:
        padded = padded[..., ::across]  # wider kernels see every column
    span = padded.shape[2] - dilation * (height - 1)
    rows = [padded[:, :, f * dilation : f * dilation + span : step] for f in range(height)]
    return torch.stack(rows, 1).permute(0, 3, 4, 1, 2).reshape(-1, height * x.shape[1])


def _probe(layer: Any, moment: Tensor) -> Tensor:
    """The layer's weight at the rank that loses PROBE_ERROR of its output energy."""
    root = matrix_power(with_ridge(moment), 0.5)
    W = unfold(layer.weight.detach()).double()
    _, S, Vh = torch.linalg.svd(root @ W, full_matrices=False)
    kept = S.square().cumsum(0) < (1 - PROBE_ERROR) * S.square().sum()
    V = Vh[: max(int(kept.sum()), 1)]
    return fold(W @ V.T @ V, layer.weight.shape).to(layer.weight.dtype)


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[-1] < 2:
        raise ValueError(
            "measured weights need a network that returns a tensor of two or more logits; use weights='equal'"
        )
    return output.float().flatten(0, -2)


def _first_images(loader: Loader, num_images: int) -> Iterator[Tensor]:
    for batch in loader:
        images = _images_of(batch)
        yield images[:num_images]
        num_images -= len(images)
        if num_images <= 0:
            return


def _run(model: nn.Module, loader: Loader, training: Iterable[nn.Module] = ()) -> Iterator[tuple[Tensor, Any]]:
    """(images, output) of each batch; all modules but those `training` in evaluation mode."""
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"calibration needs a model in float32, got {parameter.dtype}; call model.float()")
    nothing = True
    with _evaluating(model):
        for module in training:
            module.train()
        for batch in loader:
            images = _images_of(batch)
            nothing = False
            if parameter is not None and images.device != parameter.device:
                raise ValueError(f"the model is on {parameter.device}, a calibration batch on {images.device}")
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


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"calibration needs batches of images as floats, or tuples that begin with one; got {got}")
    if not len(images) or not torch.isfinite(images).all():
        raise ValueError("a calibration batch is empty, or holds NaN or infinite values")
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
