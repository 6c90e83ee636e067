"""python -m jointsvd.commands.benchmark checkpoints={...}: saved networks in several engines: time, size, accuracy."""

import glob
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.inference import prepare_for_inference
from jointsvd.deployment.onnx_runtime import onnx_session, onnxruntime, top1
from jointsvd.deployment.quantize import to_int8
from jointsvd.experiment.settings import CONF, read_data
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.network.files import read_metadata, write_atomic
from jointsvd.network.timing import latency
from jointsvd.results.benchmark_table import render
from jointsvd.results.report import print_table
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network
from jointsvd.training.data import ImageData

ENGINES = ("eager", "channels_last", "compile", "prepared", "cuda", "onnx", "int8")
_ONNX = ("onnx", "int8")


@dataclass(frozen=True)
class BenchmarkRow:
    """A network in an engine. file_bytes: of its safetensors or ONNX file. top1: percent of the test images, of the
    int8 network, or of the float32 one in ONNX Runtime, whose outputs are PyTorch's within 1e-4."""

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


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.output_dir) / cfg.name
    try:
        engines, paths, data = _engines(cfg), _paths(cfg), read_data(cfg)
        contestants = [_prepare(name, path, engines, data, cfg) for name, path in track(paths.items(), "Exporting")]
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"nothing was measured: {error}") from error
    rows: list[dict[str, Any]] = []
    for row in _measure(cfg, contestants, engines, data):
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


def _engines(cfg: DictConfig) -> list[str]:
    unknown = set(cfg.engines) - set(ENGINES)
    if unknown or not cfg.engines:
        raise ValueError(f"engines are of {', '.join(ENGINES)}, got {list(cfg.engines)}")
    usable = [engine for engine in cfg.engines if _works(engine)]
    if not usable:
        raise ValueError(f"none of {', '.join(cfg.engines)} works on this machine")
    return usable


def _works(engine: str) -> bool:
    """cuda needs a GPU, torch.compile a C++ compiler and Python's headers; tried before anything long."""
    try:
        match engine:
            case "cuda":
                return torch.cuda.is_available()
            case "compile":
                torch.compile(torch.sin)(torch.ones(8))
    except Exception as error:  # whatever a compiler may say
        reason = str(error).partition("\n")[0]
        print(f"Without torch.compile, which does not work here: {reason}")
        return False
    return True


def _prepare(name: str, path: str, engines: list[str], data: ImageData, cfg: DictConfig) -> Contestant:
    network = load_network(path).eval().requires_grad_(False)
    contents = {"onnx": to_onnx(network, torch.rand(2, *data.input_size))}
    if "int8" in engines:
        contents["int8"] = to_int8(contents["onnx"], data.calibration_batches(cfg.calibration_images, cfg.seed))
    sizes = {engine: len(content) for engine, content in contents.items()} | {"torch": Path(path).stat().st_size}
    top1s = {engine: top1(onnx_session(content), data) for engine, content in contents.items()}
    return Contestant(name, network, read_metadata(path)["sha256"], contents, sizes, top1s)


def _runner(engine: str, contestant: Contestant, images: Tensor, threads: int) -> Callable[[Tensor], Any]:
    """What computes the network's outputs in an engine."""
    if engine in _ONNX:
        return onnx_session(contestant.contents[engine], threads)
    if engine == "prepared":
        return prepare_for_inference(contestant.network, images).model
    if engine == "compile":
        torch.compiler.reset()  # networks of one class share its cache, which is small
        return torch.compile(contestant.network.to(memory_format=torch.contiguous_format), dynamic=False)
    memory_format = torch.contiguous_format if engine == "eager" else torch.channels_last
    return contestant.network.to(images.device).to(memory_format=memory_format)


def _measure(
    cfg: DictConfig, contestants: list[Contestant], engines: list[str], data: ImageData
) -> Iterator[BenchmarkRow]:
    """One after the other, the networks of an engine side by side."""
    facts = {"command": f"python -m jointsvd.commands.benchmark {shlex.join(HydraConfig.get().overrides.task)}"}
    facts |= environment(torch.device("cpu"))
    facts["versions"] += f" onnxruntime={onnxruntime.__version__}"
    every = torch.get_num_threads()
    cells = [(e, b, t or every) for b in cfg.batch_sizes for t in dict.fromkeys(cfg.threads) for e in engines]
    cells = [cell for cell in dict.fromkeys(cells) for _ in contestants]
    for (engine, batch_size, threads), contestant in track(
        list(zip(cells, contestants * (len(cells) // len(contestants)), strict=True)), "Measuring"
    ):
        torch.set_num_threads(threads)
        device = torch.device("cuda" if engine == "cuda" else "cpu")
        images = torch.rand(batch_size, *data.input_size, device=device)
        found = latency(_runner(engine, contestant, images, threads), images, threads=threads)
        torch.set_num_threads(every)
        contestant.network.cpu()
        file = engine if engine in _ONNX else "torch"
        yield BenchmarkRow(
            network=contestant.name,
            engine=engine,
            batch_size=batch_size,
            threads=threads,
            milliseconds=found.median,
            milliseconds_iqr=found.iqr,
            passes=found.passes,
            file_bytes=contestant.file_bytes[file],
            top1=contestant.top1["int8" if engine == "int8" else "onnx"],
            num_parameters=num_parameters(contestant.network),
            flops=num_flops(contestant.network, data.input_size),
            sha256=contestant.sha256,
            data=HydraConfig.get().runtime.choices["data"],
            image_size=data.image_size,
            **facts,
        )


if __name__ == "__main__":
    main()
