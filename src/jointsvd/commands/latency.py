"""python -m jointsvd.commands.latency: how long one forward pass takes, dense and decomposed, beside figure 6 of the paper."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track
from torch import nn

from jointsvd.experiment.settings import CONF, plain
from jointsvd.network.cost import compression_factor, num_flops
from jointsvd.network.files import write_atomic
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import latency
from jointsvd.results import paper
from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.rows import environment
from jointsvd.results.table import label
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


def render(rows: pd.DataFrame, folder: Path) -> None:
    """Write table.md and latency.png of `rows` to `folder`."""
    write_table(folder / "table.md", readable(rows), conditions(rows))
    write_picture(folder / "latency.png", picture(rows))


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds and ratios to the dense network, beside the paper's."""
    dense = rows[rows["method"] == "dense"].set_index("model")
    lines = []
    for row in rows.to_dict("records"):
        printed = paper.latency(row)
        lines.append(
            {
                "model": row["model"],
                "method": "dense" if row["method"] == "dense" else label(row),
                "rank_rate": "" if row["method"] == "dense" else f"{row['rank_rate']:g}",
                "CF": f"{row['compression_factor']:.2f}",
                "dense / its FLOPs": f"{dense['flops'][row['model']] / row['flops']:.2f}",
                "ms (median ± IQR)": f"{row['milliseconds']:.2f} ± {row['milliseconds_iqr']:.2f}",
                "dense / its ms": f"{dense['milliseconds'][row['model']] / row['milliseconds']:.2f}",
                "paper's ms": "" if printed is None else f"{printed[0]:.2f}",
                "paper's dense / its ms": "" if printed is None else f"{printed[1] / printed[0]:.2f}",
            }
        )
    return pd.DataFrame(lines)


def conditions(rows: pd.DataFrame) -> str:
    """What the numbers were measured under."""
    first = rows.iloc[0]
    return (
        f"Random weights, float32, eager PyTorch, batch {first['batch_size']}, {first['threads']} thread(s) of "
        f"{first['processor'].split(',')[0]}, images {first['input_size']}; median of {first['passes']} "
        f"passes. {first['versions']}, {first['date'][:10]}. The paper's milliseconds are from its own machine."
    )


def picture(rows: pd.DataFrame) -> Figure:
    """Speed-up beside what the FLOPs promise, a panel a network."""
    models = list(rows["model"].unique())
    figure = Figure(figsize=(4 * len(models), 4), layout="constrained")
    table = readable(rows)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines = table[(table["model"] == model) & (table["method"] != "dense")]
        names = lines["method"] + " " + lines["rank_rate"]
        for offset, column in enumerate(("dense / its FLOPs", "dense / its ms", "paper's dense / its ms")):
            values = pd.to_numeric(lines[column], errors="coerce").fillna(0)
            axes.barh([i + 0.27 * offset for i in range(len(lines))], values, height=0.25, label=column)
        axes.set_yticks([i + 0.27 for i in range(len(lines))], names, fontsize="small")
        axes.invert_yaxis()
        axes.set(title=model, xlabel="times faster than dense")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


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
