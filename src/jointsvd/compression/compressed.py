"""`compress`: a trained network and calibration images in, the network at a budget out."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression import losses
from jointsvd.compression.agreement import Part, agreement
from jointsvd.compression.allocation import check_budget, plan_for_budget
from jointsvd.compression.batches import part
from jointsvd.compression.budget import Budget, Engine, Means
from jointsvd.compression.calibration import Loader, run_batches
from jointsvd.compression.layer_times import LayerTimes, measure_layer_times, paired_times
from jointsvd.compression.memory import passed
from jointsvd.compression.options import Choice
from jointsvd.compression.processes import in_first_process, several_processes
from jointsvd.compression.refitting import check_sizes, match_norms, trial_of
from jointsvd.compression.refitting import refit as _refit
from jointsvd.compression.rehearsal import rehearse
from jointsvd.compression.report import report_of
from jointsvd.compression.sources import HELD_OUT, JUDGING, ROUND, apart, shaping
from jointsvd.compression.statistics import Statistics, collect_statistics
from jointsvd.compression.suitability import problems
from jointsvd.compression.task import Task
from jointsvd.compression.tuning import Tuned, check_tuning, tune
from jointsvd.compression.untouched import matrix_layers, untouched
from jointsvd.network.copying import bake, copied
from jointsvd.network.cost import usage
from jointsvd.network.lifted import lift
from jointsvd.network.plan import Plan
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import apply_plan, build_structure
from jointsvd.network.tensors import fill, unique_tensors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compressed:
    """report: a dictionary for each choice of the planner, in the network's order: its layers, what was done ("dense",
    "alone", or "left" and "right" for a shared U or V), the rank, the largest rank that would have saved parameters,
    parameters and FLOPs of an image before and after, and the predicted change of the network's output (KL divergence,
    nats an image), as images tell that did not shape the factors, beside that of the factors found on the images that
    did, before they were fitted again. untouched: the layers with parameters that no choice was made for, by name,
    class, parameters, share of the network's (percent) and reason. held_out: `Agreement` with the dense network on
    calibration images that shaped nothing (images, kl, top1_agreement) beside predicted_kl; None if there were too few.
    tuned: what `tune` did, if asked."""

    model: nn.Module
    plan: Plan
    report: list[dict[str, Any]]
    untouched: list[dict[str, Any]]
    held_out: dict[str, Any] | None
    tuned: Tuned | None = None


@random_state_kept()
@torch.inference_mode(False)
def compress(
    model: nn.Module,
    calibration: Loader,
    budget: Budget | None = None,
    *,
    output: Callable[[Any], Any] | None = Task.output,
    loss: losses.Kind | Callable[[Any], Tensor] = Task.loss,
    forward: Callable[[nn.Module, Any], Any] | None = Task.forward,
    sources: Sequence[Hashable] | Tensor | None = None,
    **options: Any,
) -> Compressed:
    """A copy of `model` that keeps a `Budget`, given as such or by its fields: ``compress(model, images, params=22)``.
    `model` stays as it was.

    Time is that of PyTorch on the model's device now, or with engine="onnx" or "int8" that of ONNX Runtime on the CPU,
    from layers that are measured first (`measure_layer_times`). The result is timed too, in turn with the dense one:
    plan.settings has the dense network's milliseconds, the predicted and the measured ones, and how many times faster.

    calibration: some hundred images as batches, or as tuples whose first item is one; labels are not used. The ranks of
    all convs and linear layers, and which of them share a factor, are chosen to change the network's output least on
    images that did not shape the factors; batch norms behind them are corrected (`match_norms`). Every eighth image
    shapes nothing: the result is compared with the dense network there.

    output, loss, forward: of a `Task`: what counts of the network's output (``output=lambda y: y["out"]``), what a
    change of it costs ("classes", "binary", "gaussian", or a function that gives a scalar), how the network takes a
    batch that is not images alone (``forward=lambda model, batch: model(**batch)``).
    sources: of each image, what it was taken from (a picture, a film, a patient), if several are from one: errors are
    then those on other sources, without it on other images of the same ones (`sources.apart`).
    options: the fields of a `Budget`, and of `Means`: share, whether layers may share factors; refit, whether each
    layer's factors are then fitted behind the layers compressed before it; rank_multiple, of which ranks are multiples;
    engine, where time is measured; tune, steps of training towards the dense network (`tune`), without labels, of which
    one more image in eight says how many are kept (None: nothing is trained); memory, the GB that images may take on
    their way through the networks (None: half of what is free), however many images there are.

    In torch.distributed all processes call it, rank 0 does the work on its own images, and all get its network. Raises
    ValueError as `collect_statistics` and `plan_for_budget` do, for bad budgets before anything runs, and for networks
    that cannot be copied or cannot run with factors in them, before anything long.
    """
    means = Means(**{field.name: options.pop(field.name) for field in fields(Means) if field.name in options})
    budget, task = _budget(budget, options), Task(forward, output, loss)
    if budget.timed and forward is not None:
        raise ValueError("a budget of time is measured on model(images), without a forward= of yours: give flops")

    def work() -> Compressed:
        arranged = calibration if sources is None else apart(calibration, sources, task, judging=bool(means.tune))
        return _compressed(model, arranged, budget, means, task)

    return _in_all(model, work) if several_processes() else work()


def _in_all(model: nn.Module, compressed: Callable[[], Compressed]) -> Compressed:
    """What the first process gets, in all of them."""

    def work() -> tuple[Compressed, dict[str, Tensor]]:
        result = compressed()
        tensors = {key: tensor.detach().cpu() for key, tensor in unique_tensors(result.model).items()}
        return replace(result, model=nn.Identity()), tensors  # modules may hold what cannot be sent

    result, tensors = in_first_process(work)
    structure = build_structure(bake(copied(model)), result.plan)
    fill(structure, tensors)
    return replace(result, model=structure)


def _budget(budget: Budget | None, given: Mapping[str, float | None]) -> Budget:
    if budget is not None and given:
        raise ValueError(f"give a Budget or its fields, not both: got a Budget and {', '.join(given)}")
    if budget is not None and not isinstance(budget, Budget):
        raise ValueError(f"give the budget by its fields (params=22) or as a Budget(params=22), got {budget!r}")
    return budget or Budget(**given)


def _compressed(model: nn.Module, calibration: Loader, budget: Budget, means: Means, task: Task) -> Compressed:
    own = bake(copied(model))  # whatever a forward does to a network, it does to this one
    model = own if budget.timed else lift(copied(own))  # lifted, the dense network would take another time
    whole = list(calibration) if means.refit or isinstance(calibration, Iterator) else calibration  # it runs twice
    if means.refit or means.tune:
        check_sizes(whole, task)
    if means.tune:
        check_tuning(list(Part(whole, ROUND, [JUDGING], task)), task)
    batches = shaping(whole, task, judging=bool(means.tune))  # of which the noise in the statistics is
    whole = passed(model, whole, means.memory, task)
    loader = shaping(whole, task, judging=bool(means.tune))
    image, times = _tried_out(model, loader, budget, means, task)
    _log.info("Measuring what the layers do on the calibration images")
    statistics = collect_statistics(model, batches, task=task, memory=means.memory)
    for problem in problems(model, loader, statistics, task):
        _log.warning(problem)
    _log.info("Choosing ranks and shared factors of %d layers", len(statistics.inputs))
    ways: dict[str, Any] = {"share": means.share, "rank_multiple": means.rank_multiple}
    plan, choices = plan_for_budget(model, statistics, budget, times=times, **ways)
    left, model = untouched(model, statistics), lift(own, {name for group in plan.groups for name in group.members})
    trial, predicted = _tried(model, plan, statistics, loader, task, means.memory)
    plan = replace(plan, settings={**plan.settings, "predicted_kl": predicted})
    compressed, report = _factored(model, plan, choices, statistics)
    del choices
    statistics = statistics.of_outputs()  # the other moments take memory that images need now
    _log.info("Fitting factors and batch norms behind compressed layers" if means.refit else "Correcting batch norms")
    if means.refit:
        _refit(model, compressed, plan, statistics, loader, trial, task, means.memory)
    else:
        match_norms(model, compressed, loader, task, means.memory)
    if times:
        plan = replace(plan, settings={**plan.settings, **_timed(own, compressed, image, plan, means.engine)})
    tuned = _tuned(model, compressed, whole, means, task)
    return Compressed(compressed, plan, report, left, _held_out(model, compressed, plan, whole, task), tuned)


def _tried_out(
    model: nn.Module, loader: Loader, budget: Budget, means: Means, task: Task
) -> tuple[Any, LayerTimes | None]:
    """One image, and what a budget of time needs. Raises ValueError for a network that cannot be compressed and for a
    budget that cannot be kept, if possible before measuring."""
    with torch.no_grad():
        batch, output = next(run_batches(copied(model), loader, task))
    if task.kind is None:
        task.value(output)
    image = part(batch, slice(0, 1))
    check_budget(model, image, budget, rank_multiple=means.rank_multiple, ask=task.ask)
    names = [name for name, _ in matrix_layers(model, usage(model, image, task.ask)[0])]
    rehearse(model, batch, names, task, refit=means.refit)
    if not budget.timed:
        return image, None
    times = measure_layer_times(model, image, means.engine, means.rank_multiple)
    check_budget(model, image, budget, times=times, rank_multiple=means.rank_multiple)
    return image, times


def _factored(
    model: nn.Module, plan: Plan, choices: list[Choice], statistics: Statistics
) -> tuple[nn.Module, list[dict[str, Any]]]:
    _log.info("Decomposing %d layers", sum(len(group.members) for group in plan.groups))
    compressed = apply_plan(model, plan, statistics=statistics)
    return compressed, report_of(choices, model, compressed, statistics)


def _tried(
    model: nn.Module, plan: Plan, statistics: Statistics, loader: Loader, task: Task, memory: float | None
) -> tuple[nn.Module, float | None]:
    """A trial of the plan, whose factors the last fold of the images did not shape, and its KL divergence there: what
    layers do to each other is in it, which the sum of their errors leaves out. None for one image."""
    _log.info("Trying the plan on a fold of the images")
    trial, folds = trial_of(model, plan, statistics), statistics.num_folds
    if folds < 2:
        return trial, None
    others, last = Part(loader, folds, range(folds - 1), task), Part(loader, folds, [folds - 1], task)
    return trial, agreement(model, match_norms(model, trial, others, task, memory), last, task).kl


def _tuned(model: nn.Module, compressed: nn.Module, whole: Loader, means: Means, task: Task) -> Tuned | None:
    if not means.tune:
        return None
    judging = Part(whole, ROUND, [JUDGING], task)
    found = tune(model, compressed, shaping(whole, task, judging=True), judging, means.tune, task=task)
    text = "%d of %d steps of tuning were kept; KL on images apart %.3g nats before, %.3g now"
    _log.info(text, found.steps, means.tune, found.kl_before, found.kl)
    return found


def _held_out(model: nn.Module, compressed: nn.Module, plan: Plan, whole: Loader, task: Task) -> dict[str, Any] | None:
    """Logged beside what was predicted, as a warning if it is more than twice as much."""
    images = list(Part(whole, ROUND, [HELD_OUT], task))
    if not images:
        return None
    predicted, found = plan.settings["predicted_kl"] or 0.0, agreement(model, compressed, images, task)
    same = found.top1_agreement
    alike = "" if same is None else f" the prediction is the dense network's in {same:.1f} %;"
    say = _log.warning if found.kl > 2 * predicted + 1e-6 else _log.info
    text = "on %d held-out images%s KL %.3g nats, predicted %.3g"
    say(text, found.images, alike, found.kl, predicted)
    return found.as_dict(predicted)


def _timed(dense: nn.Module, compressed: nn.Module, image: Tensor, plan: Plan, engine: Engine | None) -> dict[str, Any]:
    """Milliseconds for one image, and how many times faster than the dense network, measured in turn; they are logged
    beside what the plan promised."""
    was, promised = plan.settings["milliseconds"], plan.settings["predicted_milliseconds"]
    before, found = paired_times(dense, compressed, image, engine)
    say = _log.info if before / found > was / promised / 1.15 else _log.warning
    text = "%.3g ms dense, %.3g ms predicted (%.3g times faster), %.3g ms measured (%.3g times faster than just now)"
    say(text, was, promised, was / promised, found, before / found)
    return {"engine": engine or "torch", "measured_milliseconds": found, "measured_faster": before / found}
