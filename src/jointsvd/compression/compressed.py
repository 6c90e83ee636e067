"""`compress`: a trained network and calibration images in, the network at a budget out."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from jointsvd.compression.allocation import check_budget, plan_for_budget
from jointsvd.compression.calibration import Loader, Statistics, collect_statistics, recalibrate_batchnorm, run_batches
from jointsvd.compression.layer_times import measure_layer_times
from jointsvd.compression.options import Choice
from jointsvd.compression.refitting import check_sizes
from jointsvd.compression.refitting import refit as _refit
from jointsvd.decomposition.weighted import objective
from jointsvd.network.cost import num_parameters
from jointsvd.network.layers import FactorPair, unfold
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import compress_model
from jointsvd.network.timing import latency

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compressed:
    """report: a dictionary for each choice of the planner, in the network's order: its layers, what was done ("dense",
    "alone", or "left" and "right" for a shared U or V), the rank, the largest rank that would have saved parameters,
    parameters and FLOPs of an image before and after, and the predicted change of the network's output (KL divergence,
    nats an image) beside that of the factors found for it, before they were fitted again."""

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
    faster: float | None = None,
    latency_ms: float | None = None,
    share: bool = True,
    refit: bool = True,
    rank_multiple: int = 1,
) -> Compressed:
    """A copy of `model` with `params` times fewer parameters, `flops` times fewer FLOPs, `bytes` times smaller,
    `faster` times as fast or with a forward pass of one image in `latency_ms`, as given; `model` stays as it was.

    Time is that of PyTorch on the model's device now, from layers that are measured first (`measure_layer_times`); it
    and FLOPs exclude each other. The result is timed too: plan.settings has the dense network's milliseconds, the
    predicted and the measured ones.

    calibration: some hundred images as batches, or as tuples whose first item is one; labels are not used. The ranks of
    all convs and linear layers, and which of them share a factor, are chosen to change the network's output least;
    batch norm is measured again on the same images. refit: whether each layer's factors are then fitted behind the
    layers compressed before it, which takes memory for all images at once. No training. Raises ValueError as
    `collect_statistics` and `plan_for_budget` do, for bad budgets and bad first batches before any long work.
    """
    loader = list(calibration) if refit or isinstance(calibration, Iterator) else calibration  # it runs more than once
    if refit:
        check_sizes(loader)
    if latency_ms is not None and latency_ms <= 0:
        raise ValueError(f"latency_ms must be above 0, got {latency_ms:g}")
    params = params_for_bytes(model, params, bytes)
    image = next(run_batches(model, loader))[0][:1]
    times = measure_layer_times(model, image) if faster or latency_ms else None
    if times and latency_ms is not None:
        faster = max(faster or 1.0, times.network / latency_ms)
    running: dict[str, Any] = {"flops": flops, "faster": faster, "times": times}
    check_budget(model, image, params=params, rank_multiple=rank_multiple, **running)
    _log.info("Measuring what the layers do on the calibration images")
    statistics = collect_statistics(model, loader)
    _log.info("Choosing ranks and shared factors of %d layers", len(statistics.inputs))
    plan, choices = plan_for_budget(
        model, statistics, params=params, share=share, rank_multiple=rank_multiple, **running
    )
    _log.info("Decomposing %d layers", sum(len(group.members) for group in plan.groups))
    compressed = compress_model(model, plan, statistics=statistics)
    order = [name for name, _ in model.named_modules()]
    choices = sorted(choices, key=lambda choice: order.index(choice.option.layers[0].name))
    report = [_line(choice, model, compressed, statistics) for choice in choices]
    _log.info("Fitting factors and batch norms behind compressed layers" if refit else "Measuring batch norms again")
    if refit:
        _refit(model, compressed, plan, statistics, loader)
    else:
        recalibrate_batchnorm(compressed, loader)
    if times:
        plan = replace(plan, settings={**plan.settings, "measured_milliseconds": _timed(compressed, image, plan)})
    return Compressed(compressed, plan, report)


def _timed(compressed: nn.Module, image: Tensor, plan: Plan) -> float:
    """Milliseconds for one image; they are logged beside what the plan promised."""
    was, promised = plan.settings["milliseconds"], plan.settings["predicted_milliseconds"]
    found = latency(deepcopy(compressed).eval(), image).median
    say = _log.info if found < 1.15 * promised else _log.warning
    say("%.3g ms dense, %.3g ms predicted, %.3g ms measured", was, promised, found)
    return found


def params_for_bytes(model: nn.Module, params: float | None, bytes: float | None) -> float | None:
    """The budget of parameters that keeps the one of bytes too; buffers do not shrink. Raises ValueError if they alone
    are more."""
    if bytes is None:
        return params
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    left = (weights + buffers) / bytes - buffers
    if left <= 0:
        raise ValueError(f"bytes={bytes:g} leaves less than the model's buffers alone, {buffers} bytes")
    size = weights / num_parameters(model)
    return max(params or 1.0, num_parameters(model) / (left / size))


def _line(choice: Choice, model: nn.Module, compressed: nn.Module, statistics: Statistics) -> dict[str, Any]:
    layers, before, after = choice.option.layers, choice.option.dense_cost, choice.cost
    dense_flops = flops = 0.0
    for layer in layers:
        (rows, cols), (vertical, horizontal) = layer.W.shape, statistics.positions[layer.name]
        dense_flops += 2 * rows * cols * horizontal
        flops += 2 * choice.rank * (rows * vertical + cols * horizontal)
    reached = 0.0
    if choice.rank:
        pairs = [cast(FactorPair, compressed.get_submodule(layer.name)) for layer in layers]
        Ws = [unfold(cast(Tensor, model.get_submodule(layer.name).weight)) for layer in layers]
        Cs, Gs = zip(*(statistics.metric(layer.name) for layer in layers), strict=True)
        reached = objective(Ws, Cs, Gs, [unfold(pair.u.weight) @ unfold(pair.v.weight) for pair in pairs])
    return {
        "layers": [layer.name for layer in layers],
        "choice": choice.option.kind if choice.rank else "dense",
        "rank": choice.rank or None,
        "largest_rank": choice.option.largest_rank(1),
        "parameters": int(after[0]),
        "dense_parameters": int(before[0]),
        "flops": int(flops if choice.rank else dense_flops),
        "dense_flops": int(dense_flops),
        "predicted_error": choice.error,
        "reached_error": reached,
    }
