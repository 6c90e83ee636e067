"""What is asked of a run before anything long starts. All of it raises ValueError, saying what to change."""

import json
from dataclasses import fields
from functools import cache

import torch
from torch import nn

from jointsvd.compression.allocation import check_budget
from jointsvd.compression.budget import Budget, Means
from jointsvd.experiment.choices import Choices
from jointsvd.network.checked import check_arguments, check_fields
from jointsvd.network.methods import METHODS, WITH_RANK_RATE
from jointsvd.network.plan import Plan
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import apply_plan
from jointsvd.results.tracking import check_logger
from jointsvd.training.checkpoints import check_finite, load_weights
from jointsvd.training.devices import check_options, num_processes
from jointsvd.training.models import build_model, check_architecture, check_classifies, empty_model


def check_run(choices: Choices) -> None:
    """Raises ValueError for values that cannot work."""
    check_fields(choices)
    check_options(choices.trainer)
    _check_method(choices)
    _check_schedules(choices)
    _check_model(choices)
    check_logger(choices.logger)
    if not 0 <= choices.calibration_images <= choices.data.num_train:
        raise ValueError(f"calibration_images={choices.calibration_images} of {choices.data.num_train} training images")
    if choices.from_scratch and choices.calibration_images and choices.method["name"] != "budget":
        raise ValueError("from_scratch=true decomposes nothing: leave calibration_images at 0")


def _check_method(choices: Choices) -> None:
    """Types and ranges of the method's options, each as the function says it that takes it."""
    options = dict(choices.method)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {name!r}")
    if name in WITH_RANK_RATE:
        check_arguments(apply_plan, {key: options.pop(key) for key in ("iterations",) if key in options}, "method.")
        check_arguments(plan_compression, options, "method.")
    known = {option.name for option in (*fields(Budget), *fields(Means))}
    if unknown := set(choices.budget) - known:
        raise ValueError(f"budget.{min(unknown)} is unknown; there are {', '.join(sorted(known))}")


def planned(choices: Choices) -> Plan | None:
    """The plan of a method: empty for the dense network, None for a budget that can be kept."""
    dense = _dense_without_weights(choices)
    method = dict(choices.method)
    name = method.pop("name")
    if name == "budget":
        _check_budget(choices, dense)
        return None
    method.pop("iterations", None)
    return Plan() if name == "dense" else plan_compression(dense, name, **method)


def _check_schedules(choices: Choices) -> None:
    baseline, finetune = choices.baseline, choices.finetune
    processes, num_train = num_processes(choices.trainer), choices.data.num_train
    trains_dense = not choices.from_scratch and not choices.model.checkpoint
    for schedule in [finetune] * bool(finetune.epochs) + [baseline] * trains_dense:
        if schedule.batch_size > num_train or schedule.batch_size % processes:
            raise ValueError(
                f"recipe: batch_size {schedule.batch_size} must be a multiple of the {processes} processes and at "
                f"most the {num_train} training images"
            )
        if (schedule.num_images or 0) > num_train:
            raise ValueError(f"recipe: num_images {schedule.num_images} of only {num_train} training images")
    if baseline.distillation or (choices.from_scratch and finetune.distillation):
        raise ValueError("distillation needs a trained dense network: only recipe.finetune can have it")
    if choices.from_scratch and not finetune.epochs:
        raise ValueError("from_scratch=true trains by recipe.finetune; give it epochs")


def _check_model(choices: Choices) -> None:
    check_architecture(**choices.architecture, pretrained=choices.pretrained)
    _dense_without_weights(choices)
    for schedule in (choices.baseline, choices.finetune):
        for _, pixels in schedule.image_sizes:
            _on_meta(json.dumps(choices.architecture), (choices.data.in_channels, pixels, pixels))
    if choices.model.checkpoint:
        _check_checkpoint(choices.model.checkpoint, json.dumps(choices.architecture))


def _check_budget(choices: Choices, dense: nn.Module) -> None:
    """dense: on the meta device."""
    try:
        budget = Budget(**{option.name: choices.budget.get(option.name) for option in fields(Budget)})
        Means(**{option.name: choices.budget[option.name] for option in fields(Means)})
    except ValueError as error:
        raise ValueError(f"budget: {error}") from error
    if choices.from_scratch or not choices.calibration_images:
        raise ValueError("a budget is planned on a trained network and calibration_images (512, say)")
    image = torch.empty(1, *choices.data.input_size, device="meta")
    check_budget(dense, image, budget, rank_multiple=choices.budget["rank_multiple"])  # times are checked when measured


def _dense_without_weights(choices: Choices) -> nn.Module:
    return _on_meta(json.dumps(choices.architecture), choices.data.input_size)


@cache
def _on_meta(architecture: str, input_size: tuple[int, int, int]) -> nn.Module:
    """The dense network on the meta device, once for all jobs of a sweep. Raises ValueError if it cannot take the
    images, or does not classify them."""
    arguments = json.loads(architecture)
    network = empty_model(**arguments)
    check_classifies(network, input_size, arguments["num_classes"], arguments["name"])
    return network


@cache
def _check_checkpoint(path: str, architecture: str) -> None:
    """Raises ValueError for a file that is not the finite weights of this network."""
    network = build_model(**json.loads(architecture))
    load_weights(network, path)
    check_finite(network, f"model.checkpoint {path}")
