"""What a network does on calibration data: second moments of its layers' inputs and of the gradients that come back to
their outputs, for several folds of the images. Labels are never used."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from operator import length_hint
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.compression.calibration import Loader, run_batches
from jointsvd.decomposition.metric import shrunk
from jointsvd.network.cost import Positions, usage
from jointsvd.network.layers import MatrixLayer, is_matrix
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept

FOLDS = 4  # parts of the calibration images, so that what is fitted to some can be tried on others
_DRAWS = 2


@dataclass(frozen=True)
class Statistics:
    """Of the layers of one network on calibration data; each mapping goes by the layer's name.

    inputs: second moment (folds, F1*I, F1*I) of the vertical strips (F1 x I values) that the layer's matrix multiplies,
    summed over the positions of an image, averaged over the images of a fold: every fourth image is of one fold.
    outputs: second moment (folds, O, O) of the gradients at the layer's outputs, averaged over positions and images.
    positions: an image's outputs behind the layer's two factors (vertical, horizontal). flops: of an image, of the
    whole network.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    positions: Mapping[str, Positions]
    flops: int
    num_images: int

    @property
    def num_folds(self) -> int:
        return max(map(len, self.inputs.values()), default=0)

    def metric(self, name: str, *, without: int | None = None) -> tuple[Tensor, Tensor]:
        """(C, G) of the layer, `shrunk`, and halved so that the weighted error is a KL divergence. C (F1*I, F1*I), G
        (O, O): the same for each of the F2 columns of the kernel. without: a fold that is left out.

        Raises ValueError for a layer that was not seen.
        """
        if name not in self.inputs:
            raise ValueError(f"no statistics of {name!r}: it did not run on the calibration data")
        kept = [fold for fold in range(len(self.inputs[name])) if fold != without]
        return shrunk(self.inputs[name][kept]) / 2, shrunk(self.outputs[name][kept])

    def without(self, fold: int) -> "Statistics":
        """What the images of the other folds say."""
        kept = [other for other in range(self.num_folds) if other != fold]
        inputs, outputs = (
            {name: moments[kept] for name, moments in moved.items()} for moved in (self.inputs, self.outputs)
        )
        return replace(self, inputs=inputs, outputs=outputs)

    def measured(self, name: str, fold: int | None = None) -> tuple[Tensor, Tensor]:
        """(C, G) as they are, that the images of one fold show, or all of them."""
        if fold is None:
            return self.inputs[name].mean(0) / 2, self.outputs[name].mean(0)
        return self.inputs[name][fold] / 2, self.outputs[name][fold]


@random_state_kept()
@torch.enable_grad()
def collect_statistics(model: nn.Module, loader: Loader, *, seed: int = 0) -> Statistics:
    """Second moments at every ungrouped Conv2d and every Linear of `model` that runs, in evaluation mode.

    loader: batches, or tuples whose first item is one, each brought to the model's device. The gradients are those of
    H^1/2 e, H being the Fisher information of the logits under the model's own predictions, a softmax over its last
    dimension, and e drawn (by `seed`) from a normal distribution, a few times an image: in the mean their second moment
    is the exact one, with less noise than that of classes drawn. `model` is left as it was. Raises ValueError for a
    loader that is empty or gives no images, for images that hold NaN, are on the meta device, of another dtype or shape
    than the model takes, for a model in half precision or on the meta device, and for one that returns no logits.
    """
    moments, copy = _Moments(), deepcopy(model).requires_grad_(False)
    moments.watch(copy)
    generator, num = torch.Generator().manual_seed(seed), 0
    batches = run_batches(copy, loader, differentiable=True)
    for images, output in bar(batches, "Measuring layers", total=length_hint(loader) or None):
        image, logits = images[:1].detach(), _logits(output)
        for draw in range(_DRAWS):
            logits.backward(_sketch(logits.detach(), generator), retain_graph=draw < _DRAWS - 1)
        num += len(images)
    return Statistics(*moments.averages(), *usage(model, image), num)


def _sketch(logits: Tensor, generator: torch.Generator) -> Tensor:
    """H^1/2 e for each row of logits: with H = diag(p) - p p^T, a root of it is (I - p 1^T) diag(p)^1/2."""
    p = logits.softmax(-1)
    drawn = p.sqrt() * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
    return drawn - p * drawn.sum(-1, keepdim=True)


class _Moments:
    """Second moments of the layers' inputs and of the gradients at their outputs, added up while a network runs, for
    each fold of the images."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.rows: dict[str, Tensor] = {}  # gradients added up, by fold
        self.images = torch.zeros(FOLDS, dtype=torch.int64)
        self.folds = torch.empty(0, dtype=torch.int64)  # of the images of this batch

    def watch(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda _, args: self._begin(len(args[0])))
        for name, module in model.named_modules():
            if is_matrix(module):
                module.register_forward_hook(partial(self._record, name))

    def _begin(self, num: int) -> None:
        """Before a batch of `num` images."""
        self.folds = (torch.arange(num) + self.images.sum()) % FOLDS
        self.images += self.folds.bincount(minlength=FOLDS)

    def averages(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Over images, and over positions and images; of the layers that a gradient came back to."""
        seen = self.images > 0
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            for what, counts, averages in (("in", self.images, inputs), ("out", rows, outputs)):
                sums = self.sums[name, what]
                averages[name] = sums[seen] / counts[seen, None, None].to(sums.device)
        return inputs, outputs

    def _record(self, name: str, layer: MatrixLayer, inputs: tuple[Tensor], output: Tensor) -> None:
        self._add(name, "in", strips(layer, inputs[0].detach()))
        channels = 1 if isinstance(layer, nn.Conv2d) else -1  # a linear layer may see images too, channels last
        if output.requires_grad:
            output.register_hook(
                lambda g: self._add(name, "out", g.movedim(channels, -1).reshape(-1, g.shape[channels]))
            )

    def _add(self, name: str, what: str, vectors: Tensor) -> None:
        """vectors: (positions of all images, values), image by image."""
        if (name, what) not in self.sums:
            size = (FOLDS, vectors.shape[1], vectors.shape[1])
            self.sums[name, what] = torch.zeros(size, dtype=torch.float64, device=vectors.device)
        folds = self.folds[torch.arange(len(vectors)) * len(self.folds) // len(vectors)]
        for fold in folds.unique().tolist():
            part = vectors[(folds == fold).to(vectors.device)]
            self.sums[name, what][fold] += part.T @ part
        if what == "out":
            self.rows[name] = self.rows.get(name, 0) + folds.bincount(minlength=FOLDS)


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
