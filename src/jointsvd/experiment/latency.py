"""How long one forward pass takes, dense and decomposed by the paper's methods (figure 6)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jointsvd.network.checked import check_arguments
from jointsvd.network.cost import compression_factor, num_flops
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import latency
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


@dataclass(frozen=True)
class Contestant:
    """A network, and the options of the plan that made it from the dense one ({}: it is the dense one)."""

    model: str
    options: dict[str, Any]
    dense: nn.Module
    network: nn.Module


def contestants(
    models: Sequence[str],
    methods: Sequence[Mapping[str, Any]],
    rank_rates: Sequence[float],
    *,
    num_classes: int,
    in_channels: int,
) -> Iterator[Contestant]:
    """Networks of random weights, the dense one of each model first."""
    for name in models:
        dense = build_model(name, num_classes=num_classes, in_channels=in_channels).eval()
        yield Contestant(name, {}, dense, dense)
        for rank_rate in rank_rates:
            for method in methods:
                options = {**method, "rank_rate": rank_rate}
                check_arguments(plan_compression, options, "methods: ")
                network = build_structure(dense, plan_compression(dense, **options)).eval()
                yield Contestant(name, options, dense, network)


def measure(
    found: Sequence[Contestant], images: torch.Tensor, *, passes: int, threads: int, command: str
) -> Iterator[LatencyRow]:
    """A row for each network, on `images` (N, C, H, W)."""
    where = environment(torch.device("cpu"))
    for contestant in found:
        options, network = contestant.options, contestant.network
        time = latency(network, images, passes=passes, threads=threads)
        yield LatencyRow(
            model=contestant.model,
            method=options.get("method", "dense"),
            rank_rate=options.get("rank_rate"),
            left_share=options.get("left_share"),
            hid="decompose",
            batch_size=len(images),
            threads=threads,
            input_size="x".join(map(str, images.shape[1:])),
            compression_factor=compression_factor(contestant.dense, network),
            flops=num_flops(network, images.shape[1:]),
            milliseconds=time.median,
            milliseconds_iqr=time.iqr,
            passes=passes,
            command=command,
            **where,
        )
