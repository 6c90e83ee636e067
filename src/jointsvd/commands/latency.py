"""jointsvd latency: how long one forward pass takes, dense and decomposed, beside figure 6 of the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.progress import track

from jointsvd.commands.config import CONF, command, options
from jointsvd.commands.sentence import in_one_sentence
from jointsvd.experiment.latency import Contestant, contestants, measure
from jointsvd.network.atomic import check_writable, write_atomic
from jointsvd.network.checked import AboveZero, Count, FolderName, Pixels, Repeats, Size
from jointsvd.network.copying import without_values
from jointsvd.results.latency_table import render
from jointsvd.training.models import check_classifies


@dataclass(frozen=True)
class Latencies:
    """The options of conf/latency.yaml."""

    name: FolderName
    models: Sequence[str]
    methods: Sequence[Mapping[str, Any]]
    rank_rates: Sequence[AboveZero]
    batch_size: Count
    threads: Count
    passes: Repeats
    input_size: tuple[Size, Pixels, Pixels]
    num_classes: Size
    output_dir: str


@hydra.main(config_path=CONF, config_name="latency", version_base="1.3")
def main(cfg: DictConfig) -> None:
    with in_one_sentence("nothing was measured: "):
        asked = options(cfg, Latencies)
        folder = Path(asked.output_dir) / asked.name
        check_writable(folder / "latency.csv")
        sizes = {"num_classes": asked.num_classes, "in_channels": asked.input_size[0]}
        # all networks first, so that a mistake is found before anything is measured
        found = list(contestants(asked.models, asked.methods, asked.rank_rates, **sizes))
        for contestant in found:
            check_classifies(without_values(contestant.dense), asked.input_size, asked.num_classes, contestant.model)
    with in_one_sentence():
        _measure(found, asked, folder)


def _measure(found: list[Contestant], asked: Latencies, folder: Path) -> None:
    images = torch.randn(asked.batch_size, *asked.input_size)
    rows = measure(found, images, passes=asked.passes, threads=asked.threads, command=command())
    table = pd.DataFrame([asdict(row) for row in track(rows, "Measuring", total=len(found))])
    write_atomic(folder / "latency.csv", table.to_csv(index=False))
    render(table, folder)
    print((folder / "table.md").read_text())
    print(f"Saved {folder}/latency.csv, table.md and latency.png")


if __name__ == "__main__":
    main()
