"""jointsvd benchmark: saved networks in several engines: time, size, accuracy."""

import glob
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track

from jointsvd.commands.config import CONF, command, plain, read_data
from jointsvd.deployment.engines import usable
from jointsvd.experiment.benchmark import cells, measure, prepare
from jointsvd.network.atomic import write_atomic
from jointsvd.results.benchmark_table import render
from jointsvd.results.report import print_table


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.output_dir) / cfg.name
    try:
        engines, paths, data = usable(plain(cfg.engines)), _paths(cfg), read_data(cfg)
        contestants = [
            prepare(name, path, engines, data, cfg.calibration_images, cfg.seed)
            for name, path in track(paths.items(), "Exporting")
        ]
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"nothing was measured: {error}") from error
    measured = cells(engines, cfg.batch_sizes, cfg.threads)
    facts = {"data": HydraConfig.get().runtime.choices["data"], "command": command()}
    rows: list[dict[str, Any]] = []
    todo = measure(contestants, measured, data, facts)
    for row in track(todo, "Measuring", total=len(measured) * len(contestants)):
        rows.append(asdict(row))
        write_atomic(folder / "benchmark.csv", pd.DataFrame(rows).to_csv(index=False))
    print_table(*render(pd.DataFrame(rows), folder))
    print(f"Saved {folder}/benchmark.csv, table.md and benchmark.png")


def _paths(cfg: DictConfig) -> dict[str, str]:
    """The file of each network, by name. Raises ValueError for none called dense, and patterns of not just one file."""
    files = {str(name): glob.glob(pattern) for name, pattern in cfg.checkpoints.items()}
    if wrong := {name: found for name, found in files.items() if len(found) != 1}:
        raise ValueError(f"each of checkpoints must be one file, or a pattern that one file matches; found {wrong}")
    if "dense" not in files:
        raise ValueError(f"checkpoints must have one called dense to compare with, got {list(files)}")
    return {"dense": files["dense"][0]} | {name: found[0] for name, found in files.items()}


if __name__ == "__main__":
    main()
