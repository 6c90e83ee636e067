"""`compress`: a trained network and calibration images in, the network at a budget out."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression import losses
from jointsvd.compression.agreement import Part, agreement
from jointsvd.compression.allocation import plan_for_budget
from jointsvd.compression.batches import part
from jointsvd.compression.budget import Budget, Means
from jointsvd.compression.calibration import Loader, run_batches
from jointsvd.compression.judged import judged, timed
from jointsvd.compression.memory import passed
from jointsvd.compression.options import Choice
from jointsvd.compression.processes import in_first_process, several_processes
from jointsvd.compression.refitting import check_sizes, match_norms, trial_of
from jointsvd.compression.refitting import refit as _refit
from jointsvd.compression.rehearsal import rehearse
from jointsvd.compression.report import report_of
from jointsvd.compression.slim import Scope, Slim, scope_of, slim
from jointsvd.compression.sources import JUDGING, ROUND, apart, shaping
from jointsvd.compression.statistics import collect_statistics
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
    how many channels it still "reads" or "writes" and of how many, where some are gone, parameters and FLOPs of an
    image before and after, and the predicted change of the network's output (KL divergence, nats an image), as images
    tell that did not shape the factors, beside that of the factors found on the images that did, before they were
    fitted again. untouched: the layers with parameters that no choice was made for, by name, class, parameters, share
    of the network's (percent) and reason. held_out: `Agreement` with the dense network on calibration images that
    shaped nothing (images, kl, top1_agreement) beside predicted_kl; None if there were too few. tuned: what `tune`
    did, if asked."""

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
    narrow, whether channels between two layers may go as well, where nothing else meets them (twice the work); engine,
    where time is measured; tune, steps of training towards the dense network (`tune`), without labels, of which one
    more image in eight says how many are kept (None: nothing is trained); memory, the GB that images may take on their
    way through the networks (None: half of what is free), however many images there are.

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
    image, scope = _tried_out(own, model, loader, budget, means, task)
    _log.info("Measuring what the layers do on the calibration images")
    statistics = collect_statistics(model, batches, task=task, memory=means.memory)
    for problem in problems(model, loader, statistics, task):
        _log.warning(problem)
    found = Slim(model, own, own, statistics, budget, scope.times.get(1))
    found = slim(own, found, scope, image, batches, means, task)
    _log.info("Choosing ranks and shared factors of %d layers", len(statistics.inputs))
    ways: dict[str, Any] = {"share": means.share, "rank_multiple": means.rank_multiple, "dense": found.dense}
    plan, choices = plan_for_budget(found.planned, found.statistics, found.budget, times=found.times, **ways)
    names = {name for group in plan.groups for name in group.members}
    left, model, found = untouched(model, statistics), lift(own, names), found.lifted(names)
    plan = replace(plan, narrowed=found.narrowed)
    trial, predicted = _tried(model, found, plan, loader, task, means.memory)
    plan = replace(plan, settings={**plan.settings, "predicted_kl": predicted})
    compressed, report = _factored(found, plan, choices, model)
    del choices, statistics
    found = found.of_outputs()  # the other moments take memory that images need now
    _log.info("Fitting factors and batch norms behind compressed layers" if means.refit else "Correcting batch norms")
    if means.refit:
        _refit(model, compressed, plan, found.statistics, loader, trial, task, means.memory, found.network)
    else:
        match_norms(model, compressed, loader, task, means.memory, plan.narrowed)
    if scope.times:
        plan = timed(own, compressed, image, plan, means.engine)
    tuned = _tuned(model, compressed, whole, means, task)
    return Compressed(compressed, plan, report, left, judged(model, compressed, plan, whole, task), tuned)


def _tried_out(
    own: nn.Module, model: nn.Module, loader: Loader, budget: Budget, means: Means, task: Task
) -> tuple[Any, Scope]:
    """One image, and what may be done. Raises ValueError for a network that cannot be compressed and for a budget that
    cannot be kept, if possible before measuring."""
    with torch.no_grad():
        batch, output = next(run_batches(copied(model), loader, task))
    if task.kind is None:
        task.value(output)
    image = part(batch, slice(0, 1))
    names = [name for name, _ in matrix_layers(model, usage(model, image, task.ask)[0])]
    rehearse(model, batch, names, task, refit=means.refit)
    return image, scope_of(own, model, image, budget, means, task)


def _factored(
    found: Slim, plan: Plan, choices: list[Choice], dense: nn.Module
) -> tuple[nn.Module, list[dict[str, Any]]]:
    _log.info("Decomposing %d layers", sum(len(group.members) for group in plan.groups))
    compressed = apply_plan(found.network, Plan(plan.groups), statistics=found.statistics)
    return compressed, report_of(choices, found.network, compressed, found.statistics, dense)


def _tried(
    model: nn.Module, found: Slim, plan: Plan, loader: Loader, task: Task, memory: float | None
) -> tuple[nn.Module, float | None]:
    """A trial of the plan, whose factors the last fold of the images did not shape, and its KL divergence there: what
    layers do to each other is in it, which the sum of their errors leaves out. None for one image."""
    _log.info("Trying the plan on a fold of the images")
    trial, folds = trial_of(found.trial, Plan(plan.groups), found.statistics), found.statistics.num_folds
    if folds < 2:
        return trial, None
    others, last = Part(loader, folds, range(folds - 1), task), Part(loader, folds, [folds - 1], task)
    return trial, agreement(model, match_norms(model, trial, others, task, memory, plan.narrowed), last, task).kl


def _tuned(model: nn.Module, compressed: nn.Module, whole: Loader, means: Means, task: Task) -> Tuned | None:
    if not means.tune:
        return None
    judging = Part(whole, ROUND, [JUDGING], task)
    found = tune(model, compressed, shaping(whole, task, judging=True), judging, means.tune, task=task)
    text = "%d of %d steps of tuning were kept; KL on images apart %.3g nats before, %.3g now"
    _log.info(text, found.steps, means.tune, found.kl_before, found.kl)
    return found
