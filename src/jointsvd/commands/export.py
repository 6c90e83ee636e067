"""jointsvd export: a saved network as a file that runs without jointsvd. A shared factor is stored once."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

from jointsvd.commands.config import CONF, read_architecture, read_data
from jointsvd.deployment.export import to_onnx, to_torch
from jointsvd.deployment.quantize import to_int8
from jointsvd.network.atomic import write_atomic
from jointsvd.network.cost import num_parameters
from jointsvd.training.checkpoints import load_network
from jointsvd.training.data import ImageData

SUFFIXES = {"onnx": ".onnx", "int8": ".int8.onnx", "torch": ".pt2"}


@hydra.main(config_path=CONF, config_name="export", version_base="1.3")
def main(cfg: DictConfig) -> None:
    try:
        data = _data(cfg)
        network = load_network(cfg.checkpoint, read_architecture(cfg, data) if "model" in cfg and data else None)
        content = _convert(cfg, network.eval(), data)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(str(error)) from error
    path = Path(cfg.output or Path(cfg.checkpoint).with_suffix(SUFFIXES[cfg.format]))
    write_atomic(path, content)
    ratio = len(content) / (4 * num_parameters(network))
    print(f"Saved {path}: {len(content):,} bytes, {ratio:.3f} times those of the parameters in float32")


def _data(cfg: DictConfig) -> ImageData | None:
    """Raises ValueError for options that do not go together."""
    if cfg.format not in SUFFIXES:
        raise ValueError(f"format is one of {', '.join(SUFFIXES)}, got {cfg.format!r}")
    if ("data" in cfg) == (cfg.input_size is not None) or ("data" not in cfg and cfg.format == "int8"):
        raise ValueError("give input_size=[channels,height,width], or data= for the images of int8, not both")
    return read_data(cfg) if "data" in cfg else None


def _convert(cfg: DictConfig, network: nn.Module, data: ImageData | None) -> bytes:
    example = torch.rand(2, *(data.input_size if data else cfg.input_size))
    if cfg.format == "torch":
        return to_torch(network, example)
    content = to_onnx(network, example)
    if data is None or cfg.format == "onnx":
        return content
    return to_int8(content, data.calibration_batches(cfg.calibration_images, cfg.seed))


if __name__ == "__main__":
    main()
