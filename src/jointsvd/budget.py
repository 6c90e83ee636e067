"""`compress`: a trained network and calibration images in, the network at a budget out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from jointsvd.allocate import plan_for_budget
from jointsvd.calibrate import Loader, collect_statistics, recalibrate_batchnorm
from jointsvd.cost import num_parameters
from jointsvd.options import Choice
from jointsvd.plan import Plan
from jointsvd.surgery import compress_model


@dataclass(frozen=True)
class Compressed:
    """report: a dictionary for each choice of the planner: its layers, what was done ("dense", "alone", or "left" and
    "right" for a shared U or V), the rank, parameters and FLOPs of an image before and after, and the predicted change
    of the network's output (KL divergence)."""

    model: nn.Module
    plan: Plan
    report: list[dict[str, Any]]


def compress(
    model: nn.Module,
    calibration: Loader,
    *,
    params: float | None = None,
    flops: float | None = None,
    bytes: float | None = None,
    share: bool = True,
    rank_multiple: int = 1,
) -> Compressed:
    """A copy of `model` with `params` times fewer parameters, `flops` times fewer FLOPs and `bytes` times smaller, as
    given; `model` stays as it was.

    calibration: some hundred images as batches, or as tuples whose first item is one; labels are not used. The ranks of
    all convs and linear layers, and which of them share a factor, are chosen to change the network's output least;
    batch norm is measured again on the same images. No training. Raises ValueError as `collect_statistics` and
    `plan_for_budget` do.
    """
    loader = list(calibration) if isinstance(calibration, Iterator) else calibration  # it is run twice
    params = _params(model, params, bytes)
    statistics = collect_statistics(model, loader)
    plan, choices = plan_for_budget(
        model, statistics, params=params, flops=flops, share=share, rank_multiple=rank_multiple
    )
    compressed = recalibrate_batchnorm(compress_model(model, plan, statistics=statistics), loader)
    return Compressed(compressed, plan, [_line(choice) for choice in choices])


def _params(model: nn.Module, params: float | None, bytes: float | None) -> float | None:
    """The budget of parameters that keeps the one of bytes too; buffers do not shrink."""
    if bytes is None:
        return params
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    left = (weights + buffers) / bytes - buffers
    if left <= 0:
        raise ValueError(f"bytes={bytes:g} leaves less than the model's buffers alone, {buffers} bytes")
    size = weights / num_parameters(model)
    return max(params or 1.0, num_parameters(model) / (left / size))


def _line(choice: Choice) -> dict[str, Any]:
    before, after = choice.option.dense_cost, choice.cost
    return {
        "layers": [layer.name for layer in choice.option.layers],
        "choice": choice.option.kind if choice.rank else "dense",
        "rank": choice.rank or None,
        "parameters": int(after[0]),
        "dense_parameters": int(before[0]),
        "flops": int(after[1]),
        "dense_flops": int(before[1]),
        "predicted_error": choice.error,
    }
