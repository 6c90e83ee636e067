"""jointsvd benchmark: saved networks in several engines: time, size, accuracy."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track

from jointsvd.commands.config import CONF, command, options, read_data
from jointsvd.commands.sentence import in_one_sentence
from jointsvd.deployment.engines import usable
from jointsvd.experiment.benchmark import Cell, Contestant, cells, measure, prepare, remaining
from jointsvd.network.atomic import check_writable, write_atomic
from jointsvd.network.checked import Count, FolderName, Seed
from jointsvd.results.benchmark_table import render
from jointsvd.results.report import print_table
from jointsvd.training.data import ImageData


@dataclass(frozen=True)
class Benchmark:
    """The options of conf/benchmark.yaml."""

    name: FolderName
    checkpoints: Mapping[Any, str]
    engines: Sequence[str]
    batch_sizes: Sequence[Count]
    threads: Sequence[Count | None]
    calibration_images: Count
    seed: Seed
    output_dir: str


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
def main(cfg: DictConfig) -> None:
    with in_one_sentence("nothing was measured: ", RuntimeError):
        asked = options(cfg, Benchmark)
        folder, paths = Path(asked.output_dir) / asked.name, _paths(asked.checkpoints)
        check_writable(folder / "benchmark.csv")
        engines, data = usable(list(asked.engines)), read_data(cfg)
        contestants = [
            prepare(name, path, engines, data, asked.calibration_images, asked.seed)
            for name, path in track(paths.items(), "Exporting")
        ]
    with in_one_sentence():
        _measure(contestants, cells(engines, asked.batch_sizes, asked.threads), data, folder)


def _measure(contestants: list[Contestant], measured: list[Cell], data: ImageData, folder: Path) -> None:
    facts = {"data": HydraConfig.get().runtime.choices["data"], "command": command()}
    file = folder / "benchmark.csv"
    rows, missing = remaining(pd.read_csv(file) if file.exists() else pd.DataFrame(), contestants, measured, data)
    if len(missing) < len(measured):
        print(f"{len(measured) - len(missing)} of {len(measured)} comparisons are in {file} and are not made again")
    todo = measure(contestants, missing, data, facts)
    for row in track(todo, "Measuring", total=len(missing) * len(contestants)):
        rows = pd.concat([rows, pd.DataFrame([asdict(row)])], ignore_index=True)
        write_atomic(file, rows.to_csv(index=False))
    print_table(*render(rows, folder))
    print(f"Saved {folder}/benchmark.csv, table.md and benchmark.png")


def _paths(checkpoints: Mapping[Any, str]) -> dict[str, str]:
    """The file of each network, by name. Raises ValueError for none called dense, and patterns of not just one file."""
    files = {str(name): glob.glob(pattern) for name, pattern in checkpoints.items()}
    if wrong := {name: found for name, found in files.items() if len(found) != 1}:
        raise ValueError(f"each of checkpoints must be one file, or a pattern that one file matches; found {wrong}")
    if "dense" not in files:
        raise ValueError(f"checkpoints must have one called dense to compare with, got {list(files)}")
    return {"dense": files["dense"][0]} | {name: found[0] for name, found in files.items()}


if __name__ == "__main__":
    main()
