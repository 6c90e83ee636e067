"""python -m jointsvd.commands.latency: how long one forward pass takes, dense and decomposed, beside figure 6 of the paper."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track
from torch import nn

from jointsvd.experiment.settings import CONF, plain
from jointsvd.network.cost import compression_factor, num_flops
from jointsvd.network.files import write_atomic
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import latency
from jointsvd.results.latency_table import render
from jointsvd.results.rows import environment
from jointsvd.training.models import build_model


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds of one forward pass in float32 and evaluation mode: median, and interquartile range, of many."""

    model: str
    method: str
    rank_rate: float | None
    left_share: float | None
    hid: str
    batch_size: int
    threads: int
    input_size: str
    compression_factor: float
    flops: int
    milliseconds: float
    milliseconds_iqr: float
    passes: int
    command: str
    date: str
    versions: str
    processor: str


@hydra.main(config_path=CONF, config_name="latency", version_base="1.3")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.output_dir) / cfg.name
    networks = list(_networks(cfg))  # all of them, so that a mistake is found before anything is measured
    overrides = " ".join(HydraConfig.get().overrides.task)
    facts = {"command": f"python -m jointsvd.commands.latency {overrides}".strip(), **environment(torch.device("cpu"))}
    images = torch.randn(cfg.batch_size, *cfg.input_size)
    rows = []
    for name, options, dense, network in track(networks, "Measuring"):
        found = latency(network.eval(), images, passes=cfg.passes, threads=cfg.threads)
        rows.append(
            LatencyRow(
                model=name,
                method=options.get("method", "dense"),
                rank_rate=options.get("rank_rate"),
                left_share=options.get("left_share"),
                hid="decompose",
                batch_size=cfg.batch_size,
                threads=cfg.threads,
                input_size="x".join(map(str, cfg.input_size)),
                compression_factor=compression_factor(dense, network),
                flops=num_flops(network, cfg.input_size),
                milliseconds=found.median,
                milliseconds_iqr=found.iqr,
                passes=cfg.passes,
                **facts,
            )
        )
    table = pd.DataFrame([asdict(row) for row in rows])
    write_atomic(folder / "latency.csv", table.to_csv(index=False))
    render(table, folder)
    print((folder / "table.md").read_text())
    print(f"Saved {folder}/latency.csv, table.md and latency.png")


def _networks(cfg: DictConfig) -> Iterator[tuple[str, dict[str, Any], nn.Module, nn.Module]]:
    """(name, options of its plan, dense network, network), the dense network of each name first."""
    for name in cfg.models:
        dense = build_model(name, num_classes=cfg.num_classes, in_channels=cfg.input_size[0])
        yield name, {}, dense, dense
        for rank_rate in cfg.rank_rates:
            for method in cfg.methods:
                options = {**plain(method), "rank_rate": rank_rate}
                yield name, options, dense, build_structure(dense, plan_compression(dense, **options))


if __name__ == "__main__":
    main()
