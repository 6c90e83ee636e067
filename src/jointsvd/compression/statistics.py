"""What a network does on calibration data: second moments of its layers' inputs and of the gradients that come back to
their outputs, for several folds of the images. Labels are never used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression import losses
from jointsvd.compression.batches import part, size
from jointsvd.compression.calibration import TASK, Loader, run_batches
from jointsvd.compression.memory import Pieces, measured
from jointsvd.compression.moments import FOLDS, Sums, wide
from jointsvd.compression.norms import Channels
from jointsvd.compression.strips import strip_products, strips
from jointsvd.compression.task import Task
from jointsvd.decomposition.metric import shrunk
from jointsvd.decomposition.spanned import Moment
from jointsvd.network.copying import copied
from jointsvd.network.cost import Positions, usage
from jointsvd.network.interface import input_of
from jointsvd.network.layers import MatrixLayer, is_matrix, unfolded_shape
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept

_DRAWS = 2


@dataclass(frozen=True)
class Statistics:
    """Of the layers of one network on calibration data; each mapping goes by the layer's name.

    inputs: second moment (folds, F1*I, F1*I) of the vertical strips (F1 x I values) that the layer's matrix multiplies,
    summed over the positions of an image, averaged over the images of a fold: every fourth image is of one fold.
    outputs: second moment (folds, O, O) of the gradients at the layer's outputs, averaged over positions and images.
    Either may be a `Spanned`, where the images are few beside the values.
    positions: an image's outputs behind the layer's two factors (vertical, horizontal). flops: of an image, of the
    whole network.
    """

    inputs: Mapping[str, Moment]
    outputs: Mapping[str, Moment]
    positions: Mapping[str, Positions]
    flops: int
    num_images: int
    hidden: frozenset[str] = frozenset()  # layers that ran where no gradient comes back, under torch.no_grad

    @property
    def num_folds(self) -> int:
        return max(map(len, self.inputs.values()), default=0)

    def metric(self, name: str, *, without: int | None = None) -> tuple[Moment, Moment]:
        """(C, G) of the layer, `shrunk`, and halved so that the weighted error is a KL divergence. C (F1*I, F1*I), G
        (O, O): the same for each of the F2 columns of the kernel. without: a fold that is left out.

        Raises ValueError for a layer that was not seen.
        """
        if name not in self.inputs:
            raise ValueError(f"no statistics of {name!r}: it did not run on the calibration data")
        kept = [fold for fold in range(len(self.inputs[name])) if fold != without]
        return shrunk(self.inputs[name][kept]) / 2, shrunk(self.outputs[name][kept])

    def without(self, fold: int) -> "Without":
        """What the images of the other folds say; nothing is copied."""
        return Without(self, fold)

    def of_outputs(self) -> "Statistics":
        """Without the moments of inputs, which take the memory."""
        return replace(self, inputs={})

    def measured(self, name: str, fold: int | None = None) -> tuple[Moment, Moment]:
        """(C, G) as they are, that the images of one fold show, or all of them."""
        if fold is None:
            return self.inputs[name].mean(0) / 2, self.outputs[name].mean(0)
        return self.inputs[name][fold] / 2, self.outputs[name][fold]


@dataclass(frozen=True)
class Without:
    """Statistics of all images but those of a fold."""

    whole: Statistics
    fold: int

    def metric(self, name: str) -> tuple[Moment, Moment]:
        """As `Statistics.metric`."""
        return self.whole.metric(name, without=self.fold)


@random_state_kept()
@torch.enable_grad()
def collect_statistics(
    model: nn.Module, loader: Loader, *, seed: int = 0, task: Task = TASK, memory: float | None = None
) -> Statistics:
    """Second moments at every ungrouped Conv2d and every Linear of `model` that runs, in evaluation mode.

    loader: batches, or tuples whose first item is one, each brought to the model's device. The gradients are those of
    H^1/2 e, H being the Fisher information of the logits under the model's own predictions, a softmax over dimension 1,
    and e drawn (by `seed`) from a normal distribution, a few times an image: in the mean their second moment is the
    exact one, with less noise than that of classes drawn. task: how the network is asked, which of its outputs count,
    and another loss than this one. memory: GB that a pass may take (by default half of what is free): batches that take
    more pass in pieces, which changes nothing but rounding. `model` is left as it was. Raises ValueError for a loader
    that is empty or gives no images, for images that hold NaN, are on the meta device, of another dtype or shape than
    the model takes, for a model in half precision or on the meta device, and for one that returns no logits.
    """
    moments, copy = _Moments(), copied(model).requires_grad_(False)
    moments.watch(copy)
    pieces = measured(model, loader, memory, task)
    noise, num, spread = _Noise(seed, pieces), 0, Channels()
    batches = run_batches(copy, pieces, task, gradients=True, during=moments.passing)
    with bar(total=pieces.num_images, desc="Measuring layers", unit="images") as progress:
        for batch, output in batches:
            if not num:
                image = part(batch, slice(0, 1))
            _send_back(task, output, noise)
            if task.kind == "gaussian":
                spread.add(output.detach())
            num += size(batch)
            progress.update(size(batch))
    inputs, outputs = moments.averages()
    if task.kind == "gaussian":
        outputs = {name: moment / spread.variance for name, moment in outputs.items()}
    hidden = frozenset(moments.hidden - outputs.keys())
    return Statistics(inputs, outputs, *usage(model, image, task.ask), num, hidden)


def _send_back(task: Task, output: Any, noise: "_Noise") -> None:
    """Gradients from an output of a batch to the layers."""
    rows = task.value(output) if task.kind is None else losses.rows(task.kind, output)
    if not rows.requires_grad:
        raise ValueError("no gradient comes back from the output: the network runs under torch.no_grad, or detaches it")
    if task.kind is None:
        rows.backward()
        return
    drawn = noise.of(rows.detach())
    for draw, e in enumerate(drawn):
        rows.backward(losses.sketch(task.kind, rows.detach(), e), retain_graph=draw < len(drawn) - 1)


class _Noise:
    """Normal noise for each image, the same whatever the pieces are in which a batch passes."""

    def __init__(self, seed: int, pieces: Pieces):
        self._generator, self._pieces = torch.Generator().manual_seed(seed), pieces
        self._drawn: list[Tensor] = []

    def of(self, rows: Tensor) -> list[Tensor]:
        """Like the rows of the piece that passes, several times."""
        first, whole = self._pieces.first, self._pieces.whole
        num = len(rows) // self._pieces.num  # rows of an image
        if not first:
            shape = whole * num, rows.shape[1]
            draws = (torch.randn(shape, generator=self._generator, dtype=rows.dtype) for _ in range(_DRAWS))
            self._drawn = list(draws)
        return [e[first * num :][: len(rows)].to(rows.device) for e in self._drawn]


class _Moments:
    """Second moments of the layers' inputs and of the gradients at their outputs, added up while a network runs, for
    each fold of the images."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Sums] = {}
        self.images = torch.zeros(FOLDS, dtype=torch.int64)
        self.folds = torch.empty(0, dtype=torch.int64)  # of the images of this batch
        self.forward = False
        self.hidden: set[str] = set()

    def watch(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if is_matrix(module):
                module.register_forward_hook(partial(self._record, name), prepend=True, with_kwargs=True)

    @contextmanager
    def passing(self, num: int) -> Iterator[None]:
        """The forward pass of `num` images: checkpointed layers run again when gradients come back."""
        self.folds = (torch.arange(num) + self.images.sum()) % FOLDS
        self.images += self.folds.bincount(minlength=FOLDS)
        self.forward = True
        try:
            yield
        finally:
            self.forward = False

    def averages(self) -> tuple[dict[str, Moment], dict[str, Moment]]:
        """Over images, and over positions and images; of the layers that a gradient came back to."""
        names = [name for name, what in self.sums if what == "out"]
        inputs = {name: self.sums.pop((name, "in")).averages(self.images)[0] for name in names}
        return inputs, {name: self.sums.pop((name, "out")).averages()[0] for name in names}

    def _record(self, name: str, layer: MatrixLayer, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if self.forward:
            self._meet(name, layer, input_of(args, kwargs).detach())
        if not torch.is_grad_enabled():
            self.hidden.add(name)
            return None
        first = not output.requires_grad  # behind layers without gradients, which stop none of those to come
        if first:
            output = output.detach().requires_grad_()
        channels = 1 if isinstance(layer, nn.Conv2d) else -1  # a linear layer may see images too, channels last
        output.register_hook(lambda g: self._add(name, "out", g.movedim(channels, -1).reshape(-1, g.shape[channels])))
        return output.clone() if first else None

    @torch.no_grad()
    def _meet(self, name: str, layer: MatrixLayer, x: Tensor) -> None:
        if isinstance(layer, nn.Linear) or wide(unfolded_shape(layer)[0]):
            self._add(name, "in", strips(layer, x))
            return
        sums = self.sums.setdefault((name, "in"), Sums())
        for fold, images in self._by_fold(x):
            sums.add_products(fold, *strip_products(layer, images))

    @torch.no_grad()
    def _add(self, name: str, what: str, vectors: Tensor) -> None:
        """vectors: (positions of all images, values), image by image; in half precision under autocast."""
        sums = self.sums.setdefault((name, what), Sums())
        for fold, some in self._by_fold(vectors):
            sums.add(fold, some)

    def _by_fold(self, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """values: equally many of each image, image by image."""
        folds = self.folds[torch.arange(len(values)) * len(self.folds) // len(values)]
        for fold in folds.unique().tolist():
            yield fold, values[(folds == fold).to(values.device)]
