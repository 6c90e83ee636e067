"""jointsvd latency: how long one forward pass takes, dense and decomposed, beside figure 6 of the paper."""

from dataclasses import asdict
from pathlib import Path

import hydra
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.progress import track

from jointsvd.commands.config import CONF, command, plain
from jointsvd.experiment.latency import contestants, measure
from jointsvd.network.atomic import write_atomic
from jointsvd.results.latency_table import render


@hydra.main(config_path=CONF, config_name="latency", version_base="1.3")
def main(cfg: DictConfig) -> None:
    folder, sizes = Path(cfg.output_dir) / cfg.name, {"num_classes": cfg.num_classes, "in_channels": cfg.input_size[0]}
    try:  # all networks first, so that a mistake is found before anything is measured
        found = list(contestants(cfg.models, plain(cfg.methods), cfg.rank_rates, **sizes))
    except ValueError as error:
        raise SystemExit(f"nothing was measured: {error}") from error
    images = torch.randn(cfg.batch_size, *cfg.input_size)
    rows = measure(found, images, passes=cfg.passes, threads=cfg.threads, command=command())
    table = pd.DataFrame([asdict(row) for row in track(rows, "Measuring", total=len(found))])
    write_atomic(folder / "latency.csv", table.to_csv(index=False))
    render(table, folder)
    print((folder / "table.md").read_text())
    print(f"Saved {folder}/latency.csv, table.md and latency.png")


if __name__ == "__main__":
    main()
