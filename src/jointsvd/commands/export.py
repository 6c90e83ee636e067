"""jointsvd export: a saved network as a file that runs without jointsvd. A shared factor is stored once."""

from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

from jointsvd.commands.config import CONF, options, read_architecture, read_data
from jointsvd.commands.sentence import in_one_sentence
from jointsvd.deployment.export import to_onnx, to_torch
from jointsvd.deployment.quantize import to_int8
from jointsvd.network.atomic import check_writable, write_atomic
from jointsvd.network.checked import Count, Pixels, Seed, Size
from jointsvd.network.cost import num_parameters
from jointsvd.training.checkpoints import load_network
from jointsvd.training.data import ImageData

SUFFIXES = {"onnx": ".onnx", "int8": ".int8.onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Export:
    """The options of conf/export.yaml."""

    checkpoint: str
    input_size: tuple[Size, Pixels, Pixels] | None
    format: str
    output: str | None
    calibration_images: Count
    seed: Seed


@hydra.main(config_path=CONF, config_name="export", version_base="1.3")
def main(cfg: DictConfig) -> None:
    with in_one_sentence("", RuntimeError):
        _export(cfg, options(cfg, Export))


def _export(cfg: DictConfig, asked: Export) -> None:
    data = _data(cfg, asked)
    path = Path(asked.output or Path(asked.checkpoint).with_suffix(SUFFIXES[asked.format]))
    network = load_network(asked.checkpoint, read_architecture(cfg, data) if "model" in cfg and data else None)
    check_writable(path)
    content = _convert(asked, network.eval(), data)
    write_atomic(path, content)
    ratio = len(content) / (4 * num_parameters(network))
    print(f"Saved {path}: {len(content):,} bytes, {ratio:.3f} times those of the parameters in float32")


def _data(cfg: DictConfig, asked: Export) -> ImageData | None:
    """Raises ValueError for options that do not go together."""
    if asked.format not in SUFFIXES:
        raise ValueError(f"format is one of {', '.join(SUFFIXES)}, got {asked.format!r}")
    if ("data" in cfg) == (asked.input_size is not None) or ("data" not in cfg and asked.format == "int8"):
        raise ValueError("give input_size=[channels,height,width], or data= for the images of int8, not both")
    data = read_data(cfg) if "data" in cfg else None
    if data and asked.format == "int8" and asked.calibration_images > data.num_train:
        raise ValueError(f"calibration_images={asked.calibration_images} of {data.num_train} training images")
    return data


def _convert(asked: Export, network: nn.Module, data: ImageData | None) -> bytes:
    size = data.input_size if data else asked.input_size
    assert size is not None
    example = torch.rand(2, *size)
    if asked.format == "torch":
        return to_torch(network, example)
    content = to_onnx(network, example)
    if data is None or asked.format == "onnx":
        return content
    return to_int8(content, data.calibration_batches(asked.calibration_images, asked.seed))


if __name__ == "__main__":
    main()
