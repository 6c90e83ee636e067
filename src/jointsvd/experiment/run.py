"""One run: settings in, one result row out.

A run trains (or loads) the dense network, decomposes it, measures raw accuracy, fine-tunes, and writes its row. Each
stage has a folder in output_dir/name; what is there already is not made again.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import wandb
from torch import nn

from jointsvd.experiment.settings import Settings
from jointsvd.experiment.stages import decomposed_network, dense_network, fine_tuned_network, locked, random_network
from jointsvd.network.cost import compression_factor, num_flops, num_parameters
from jointsvd.network.files import read_metadata
from jointsvd.network.plan import Plan
from jointsvd.results.rows import Row, collect, environment
from jointsvd.results.tracking import log_run
from jointsvd.training.devices import device_of, gpu_names, is_main_process, own_gpu, resolve_precision
from jointsvd.training.models import build_model


def run(settings: Settings) -> None:
    """Make the row of `settings`, unless it is there already; on a GPU of its own where there is one."""
    shared = device_of(settings.trainer).type == "cuda" and settings.trainer["devices"] == 1
    with own_gpu(gpu_names() if shared else []) as index:
        if index is not None:
            settings = replace(settings, trainer={**settings.trainer, "devices": [index]})
        _run_once(settings)


def _run_once(settings: Settings) -> None:
    folder = settings.run_folder
    with locked(folder):
        if settings.row_file.exists():
            print(f"{folder} is finished")
            return
        try:
            row = make_row(settings)
            if is_main_process():
                row.write(folder)
                (folder / "last.ckpt").unlink(missing_ok=True)
                collect(settings.folder)
                if settings.logger:
                    log_run(settings.logger, settings.values, folder, asdict(row))
        finally:
            wandb.finish()  # else the next run of a sweep would log into one that failed


@dataclass(frozen=True)
class _Start:
    """A network before fine-tuning. dense, raw: facts of its stages, as in `stages`."""

    network: nn.Module
    plan: Plan
    costs: dict[str, Any]
    dense: dict[str, Any]
    raw: dict[str, Any]


def make_row(settings: Settings) -> Row:
    """Run the stages; the row says what they cost and reach."""
    start = _start(settings)
    raw = start.raw["accuracy"]
    words = f"raw {raw['top1']:.2f} %" if raw else "random weights"
    print(f"{settings.run_name}: CF {start.costs['compression_factor']:.2f}, {words}")
    _, tuned = fine_tuned_network(settings, start.network, start.plan, raw or None)
    print(f"{settings.run_name}: {tuned['accuracy']['top1']:.2f} % after {settings.finetune}")
    return Row(
        **_conditions(settings),
        **_method(settings),
        **start.costs,
        **_accuracies(start, tuned),
        baseline_sha256=None if settings.from_scratch else read_metadata(settings.dense_file)["sha256"],
        **environment(device_of(settings.trainer)),
    )


def _start(settings: Settings) -> _Start:
    if settings.from_scratch:
        dense, network = build_model(**settings.architecture), random_network(settings)
        plan = settings.plan or Plan()
        dense_facts: dict[str, Any] = {"accuracy": {}, "schedule": None}
        raw: dict[str, Any] = {"accuracy": {}, "seconds": 0.0}
    else:
        dense, dense_facts = dense_network(settings)
        network, plan, raw = dense, Plan(), {"accuracy": dense_facts["accuracy"], "seconds": 0.0}
        if settings.compresses:
            network, plan, raw = decomposed_network(settings, dense)
    costs = {
        "num_parameters": num_parameters(network),
        "compression_factor": compression_factor(dense, network),
        "compression_factor_paper": compression_factor(dense, network, batch_norm=False),
        "flops": num_flops(network, settings.data.input_size),
    }
    return _Start(network, plan, costs, dense_facts, raw)


def _conditions(settings: Settings) -> dict[str, Any]:
    """Columns that say what was run on what."""
    data = settings.data
    return {
        "model": settings.model.name,
        "data": settings.data_name,
        "image_size": data.image_size,
        "num_train": data.num_train,
        "num_test": data.num_test,
        "from_scratch": settings.from_scratch,
        "seed": settings.seed,
        "schedule": str(settings.finetune),
        "precision": resolve_precision(settings.trainer),
        "config_id": settings.config_id,
        "command": settings.command,
    }


def _method(settings: Settings) -> dict[str, Any]:
    """Columns of the method and its options, None where it has no such option."""
    options = settings.options
    names = (
        "rank_rate",
        "left_share",
        "own_per_shared",
        "hid",
        "iterations",
        "rank_multiple",
        "narrow",
        "share",
        "refit",
        "tune",
    )
    budgets = ("params", "flops", "bytes", "faster", "latency_ms")
    layers = options.get("layers")
    return {
        "method": settings.method["name"],
        "layers": " ".join(layers) if layers else None,
        "calibration_images": settings.calibration.get("calibration_images"),
        **{name: options.get(name) for name in names},
        **{f"budget_{name}": options.get(name) for name in budgets},
    }


def _accuracies(start: _Start, tuned: dict[str, Any]) -> dict[str, Any]:
    """Columns of what was reached at each stage, and of the seconds it took."""
    raw, accuracy = start.raw["accuracy"], tuned["accuracy"]
    return {
        "raw_top1": raw.get("top1"),
        "raw_top5": raw.get("top5"),
        "raw_correct": raw.get("correct"),
        "top1": accuracy["top1"],
        "top5": accuracy["top5"],
        "correct": accuracy["correct"],
        "best_top1": tuned["best_top1"],
        "baseline_top1": start.dense["accuracy"].get("top1"),
        "baseline_schedule": start.dense["schedule"],
        "baseline_seconds": start.dense.get("seconds"),
        "decompose_seconds": start.raw["seconds"],
        "train_seconds": tuned["seconds"],
    }
