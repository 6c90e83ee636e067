"""Saved networks side by side in several engines: time, size, accuracy, a row each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import onnxruntime
import pandas as pd
import torch
from torch import nn

from jointsvd.deployment.engines import ONNX, runner
from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.onnx_runtime import onnx_session
from jointsvd.deployment.quantize import to_int8
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.network.files import read_metadata
from jointsvd.network.timing import latency, own_clock
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network
from jointsvd.training.classifier import top1
from jointsvd.training.data import ImageData


@dataclass(frozen=True)
class BenchmarkRow:
    """A network in an engine. milliseconds: with one thread of that thread alone (`own_clock`). file_bytes: of its
    safetensors or ONNX file. top1: percent of the test images, of the int8 network, or of the float32 one in ONNX
    Runtime, whose outputs are PyTorch's within 1e-4."""

    network: str
    engine: str
    batch_size: int
    threads: int
    milliseconds: float
    milliseconds_iqr: float
    passes: int
    file_bytes: int
    top1: float
    num_parameters: int
    flops: int
    sha256: str
    data: str
    image_size: int
    command: str
    date: str
    versions: str
    processor: str


@dataclass(frozen=True)
class Contestant:
    """A network and its files, by engine; accuracies likewise."""

    name: str
    network: nn.Module
    sha256: str
    contents: dict[str, bytes]
    file_bytes: dict[str, int]
    top1: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """Where a network is timed."""

    engine: str
    batch_size: int
    threads: int


def cells(engines: Sequence[str], batch_sizes: Sequence[int], threads: Sequence[int | None]) -> list[Cell]:
    """All of them, an engine after the other; threads None: as many as PyTorch uses."""
    counts = dict.fromkeys(number or torch.get_num_threads() for number in threads)
    return [Cell(engine, size, number) for size, number, engine in product(batch_sizes, counts, engines)]


def prepare(name: str, path: str, engines: Sequence[str], data: ImageData, num_images: int, seed: int) -> Contestant:
    """The network saved at `path` and its files; int8 is calibrated on `num_images` drawn by `seed`."""
    network = load_network(path).eval().requires_grad_(False)
    contents = {"onnx": to_onnx(network, torch.rand(2, *data.input_size))}
    if "int8" in engines:
        contents["int8"] = to_int8(contents["onnx"], data.calibration_batches(num_images, seed))
    sizes = {engine: len(content) for engine, content in contents.items()} | {"torch": Path(path).stat().st_size}
    accuracies = {engine: _top1(content, data) for engine, content in contents.items()}
    return Contestant(name, network, read_metadata(path)["sha256"], contents, sizes, accuracies)


def remaining(
    rows: pd.DataFrame, contestants: Sequence[Contestant], measured: Sequence[Cell], data: ImageData
) -> tuple[pd.DataFrame, list[Cell]]:
    """The rows of an earlier run that hold, and the cells that are missing: all networks of a cell are timed in one
    run, here, in these versions, or all again."""
    if rows.empty:
        return rows, list(measured)
    networks, where = {contestant.name: contestant.sha256 for contestant in contestants}, _where()
    same = rows[rows["network"].map(networks).eq(rows["sha256"]) & rows["image_size"].eq(data.image_size)]
    same = same[same["versions"].eq(where["versions"]) & same["processor"].eq(where["processor"])]
    keys = ["engine", "batch_size", "threads"]
    kept = same.groupby(keys, sort=False).filter(lambda cell: set(cell["network"]) == set(networks))
    there = set(kept[keys].itertuples(index=False, name=None))
    return kept, [cell for cell in measured if (cell.engine, cell.batch_size, cell.threads) not in there]


def _where() -> dict[str, str]:
    where = environment(torch.device("cpu"))
    return where | {"versions": f"{where['versions']} onnxruntime={onnxruntime.__version__}"}


def measure(
    contestants: Sequence[Contestant], measured: Sequence[Cell], data: ImageData, facts: Mapping[str, str]
) -> Iterator[BenchmarkRow]:
    """A row for each cell and network, the networks of a cell one after the other. facts: the columns data and
    command."""
    where = _where()
    for cell, contestant in product(measured, contestants):
        every = torch.get_num_threads()
        torch.set_num_threads(cell.threads)
        images = torch.rand(cell.batch_size, *data.input_size, device="cuda" if cell.engine == "cuda" else "cpu")
        run = runner(cell.engine, contestant.network, contestant.contents, images, cell.threads)
        found = latency(run, images, threads=cell.threads, timer=own_clock(images.device))
        torch.set_num_threads(every)
        contestant.network.cpu()
        yield BenchmarkRow(
            network=contestant.name,
            engine=cell.engine,
            batch_size=cell.batch_size,
            threads=cell.threads,
            milliseconds=found.median,
            milliseconds_iqr=found.iqr,
            passes=found.passes,
            file_bytes=contestant.file_bytes[cell.engine if cell.engine in ONNX else "torch"],
            top1=contestant.top1["int8" if cell.engine == "int8" else "onnx"],
            num_parameters=num_parameters(contestant.network),
            flops=num_flops(contestant.network, data.input_size),
            sha256=contestant.sha256,
            image_size=data.image_size,
            **facts,
            **where,
        )


def _top1(content: bytes, data: ImageData) -> float:
    session = onnx_session(content)
    return top1(lambda images: torch.from_numpy(session(images)), data)
