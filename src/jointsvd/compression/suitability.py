"""Whether calibration images suit a network: what they do to its first batch norm, the classes found, their number."""

from collections.abc import Iterator
from math import exp, log

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.compression.batches import size
from jointsvd.compression.calibration import TASK, Loader, run_batches
from jointsvd.compression.statistics import Statistics
from jointsvd.compression.task import Task
from jointsvd.network.copying import copied

_MOST = 256  # images that are looked at
_SHIFT = 0.5  # standard deviations of the training images
_SPREAD = log(1.3)  # of the variance; photographs from elsewhere stay below, noise and images not normalised do not
_FEW = 1 / 4  # of a layer's directions


def problems(model: nn.Module, loader: Loader, statistics: Statistics, task: Task = TASK) -> list[str]:
    """What is wrong with the images of `loader`, each with what to do; nothing if they suit `model`.

    The thresholds were set on a ResNet-20 for digits and on EfficientNet-Lite0.
    """
    first, logits = _look(model, loader, task)
    found = list(_of_norms(*first)) if first else []
    found += [] if found or logits is None else list(_of_classes(logits))
    return found + list(_of_directions(statistics))


def _of_norms(shift: float, spread: float) -> Iterator[str]:
    """shift, spread: of the median channel at the first batch norm, in standard deviations and as a logarithm."""
    if shift > _SHIFT or spread > _SPREAD:
        yield (
            "the calibration images are not like the training images: at the first batch norm their mean is "
            f"{shift:.2f} standard deviations off and their variance {exp(spread):.2g} times larger or smaller (median "
            "channel). Are they normalised as the network expects, and images of its kind, not noise?"
        )


def _of_classes(logits: Tensor) -> Iterator[str]:
    num, classes = logits.shape
    found = logits.argmax(1).unique().numel()
    if num >= 16 and found < max(2, min(classes, num / 8) / 3):
        yield (
            f"the network finds {found} of its {classes} classes in {num} calibration images: are they in the order of "
            "their folders? Shuffle them, or draw them from all classes."
        )


def _of_directions(statistics: Statistics) -> Iterator[str]:
    few = {}
    for name, moments in statistics.inputs.items():
        vertical, _ = statistics.positions[name]
        if statistics.num_images * vertical < _FEW * moments.shape[-1]:
            few[name] = moments.shape[-1]
    if few:
        name = max(few, key=lambda name: few[name])
        others = f" (and of {len(few) - 1} other layers)" if len(few) > 1 else ""
        yield (
            f"{statistics.num_images} calibration images show few of the {few[name]:,} input directions of {name}"
            f"{others}: give more images, without which it cannot be cut much"
        )


def _look(model: nn.Module, loader: Loader, task: Task) -> tuple[tuple[float, float] | None, Tensor | None]:
    """Shift and spread at the first batch norm that runs, if there is one, and the logits (N, classes), of
    a network that classifies images."""
    seen: list[tuple[Tensor, Tensor]] = []
    copy, logits, num = copied(model), [], 0
    for module in copy.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            module.register_forward_pre_hook(lambda norm, args: seen.append(_deviations(norm, args[0])))
    firsts = []
    with torch.no_grad():
        for batch, output in run_batches(copy, loader, task):
            firsts += seen[:1]
            seen.clear()
            if task.kind == "classes" and output.ndim == 2:
                logits.append(output)
            num += size(batch)
            if num >= _MOST:
                break
    if not firsts:
        return None, torch.cat(logits) if logits else None
    shifts, spreads = (torch.stack(values).mean(0) for values in zip(*firsts, strict=True))
    return (float(shifts.abs().median()), float(spreads.abs().median())), torch.cat(logits) if logits else None


def _deviations(norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel that moved in training: how far its mean is off, and the log of its variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values, variance = x.transpose(0, 1).flatten(1), norm.running_var + norm.eps
    moving = norm.running_var > 1e-3 * norm.running_var.median()
    shift = (values.mean(1) - norm.running_mean) / variance.sqrt()
    return shift[moving], (values.var(1).clamp_min(1e-12) / variance).log()[moving]
