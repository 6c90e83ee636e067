"""python -m jointsvd.experiment.run: one configuration in, one result row out.

A run trains (or loads) the dense network, decomposes it, measures raw accuracy, fine-tunes, and writes its row. Each
stage has a folder in output_dir/name; what is there already is not made again.
"""

from dataclasses import asdict
from typing import Any

import hydra
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from jointsvd.commands.sweep import announce_hours
from jointsvd.experiment.settings import CONF, Settings, read_data
from jointsvd.experiment.stages import (
    command,
    decomposed_network,
    dense_network,
    fine_tuned_network,
    is_main_process,
    locked,
    quieten_lightning,
    random_network,
)
from jointsvd.network.cost import compression_factor, num_flops, num_parameters
from jointsvd.network.files import read_metadata
from jointsvd.network.plan import Plan
from jointsvd.results.report import report
from jointsvd.results.rows import Row, collect, environment
from jointsvd.results.tracking import log_run
from jointsvd.training.classifier import device_of, resolve_precision
from jointsvd.training.gpus import gpu_names, own_gpu
from jointsvd.training.models import build_model


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    start(cfg)


def start(cfg: DictConfig) -> Settings:
    """Check the configuration, run it, and print the table of its folder."""
    quieten_lightning()
    alone = HydraConfig.get().mode == RunMode.RUN and is_main_process()
    try:
        settings = Settings.from_config(cfg, read_data(cfg))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"nothing was run: {error}") from error
    if alone:
        announce_hours([settings])
    shared = device_of(cfg.trainer).type == "cuda" and cfg.trainer.devices == 1
    with own_gpu(gpu_names() if shared else []) as index:
        if index is not None:
            cfg.trainer.devices = [index]
        run(settings)
    if alone:
        report(settings.folder, cfg.logger)
    return settings


def run(settings: Settings) -> None:
    """Make the row of `settings`, unless it is there already."""
    folder = settings.folder / settings.run_name
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
                if "_target_" in settings.cfg.logger:
                    log_run(settings.cfg, folder, asdict(row))
        finally:
            wandb.finish()  # else the next run of a sweep would log into one that failed


def make_row(settings: Settings) -> Row:
    """Run the stages; the row says what they cost and reach."""
    cfg, data, plan = settings.cfg, settings.data, settings.plan or Plan()
    if cfg.from_scratch:
        dense, network = build_model(**settings.architecture), random_network(settings)
        dense_facts: dict[str, Any] = {"accuracy": {}, "schedule": None}
        raw_facts: dict[str, Any] = {"accuracy": {}, "seconds": 0.0}
    else:
        dense, dense_facts = dense_network(settings)
        network, raw_facts = dense, {"accuracy": dense_facts["accuracy"], "seconds": 0.0}
        if settings.compresses:
            network, plan, raw_facts = decomposed_network(settings, dense)
    costs = {
        "num_parameters": num_parameters(network),
        "compression_factor": compression_factor(dense, network),
        "compression_factor_paper": compression_factor(dense, network, batch_norm=False),
        "flops": num_flops(network, data.input_size),
    }
    raw = raw_facts["accuracy"]
    start = "random weights" if cfg.from_scratch else f"raw {raw['top1']:.2f} %"
    print(f"{settings.run_name}: CF {costs['compression_factor']:.2f}, {start}")
    network, facts = fine_tuned_network(settings, network, plan, raw or None)
    print(f"{settings.run_name}: {facts['accuracy']['top1']:.2f} % after {settings.finetune}")

    method = settings.method
    layers = method.get("layers")
    return Row(
        model=cfg.model.name,
        data=HydraConfig.get().runtime.choices["data"],
        image_size=data.image_size,
        num_train=data.num_train,
        num_test=data.num_test,
        method=cfg.method.name,
        rank_rate=method.get("rank_rate"),
        left_share=method.get("left_share"),
        own_per_shared=method.get("own_per_shared"),
        hid=method.get("hid"),
        layers=" ".join(layers) if layers else None,
        iterations=method.get("iterations"),
        budget_params=method.get("params"),
        budget_flops=method.get("flops"),
        budget_bytes=method.get("bytes"),
        budget_faster=method.get("faster"),
        budget_latency_ms=method.get("latency_ms"),
        rank_multiple=method.get("rank_multiple"),
        share=method.get("share"),
        refit=method.get("refit"),
        calibration_images=settings.calibration.get("calibration_images"),
        from_scratch=cfg.from_scratch,
        seed=cfg.seed,
        **costs,  # type: ignore[arg-type]
        raw_top1=raw.get("top1"),
        raw_top5=raw.get("top5"),
        top1=facts["accuracy"]["top1"],
        top5=facts["accuracy"]["top5"],
        best_top1=facts["best_top1"],
        baseline_top1=dense_facts["accuracy"].get("top1"),
        baseline_sha256=None if cfg.from_scratch else read_metadata(settings.dense_file)["sha256"],
        baseline_schedule=dense_facts["schedule"],
        baseline_seconds=dense_facts.get("seconds"),
        schedule=str(settings.finetune),
        precision=resolve_precision(cfg.trainer),
        decompose_seconds=raw_facts["seconds"],
        train_seconds=facts["seconds"],
        config_id=settings.config_id,
        command=command(),
        **environment(device_of(cfg.trainer)),
        raw_correct=raw.get("correct"),
        correct=facts["accuracy"]["correct"],
    )


if __name__ == "__main__":
    main()
