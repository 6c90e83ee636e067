"""jointsvd evaluate: accuracy, parameters and FLOPs of any saved network; of an ONNX file, accuracy and bytes."""

import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from jointsvd.commands.config import CONF, options, plain, read_architecture, read_data
from jointsvd.commands.sentence import in_one_sentence
from jointsvd.network.copying import without_values
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.training.checkpoints import check_finite, load_network
from jointsvd.training.classifier import evaluate, top1
from jointsvd.training.data import ImageData
from jointsvd.training.devices import check_options
from jointsvd.training.models import check_classifies
from jointsvd.training.trainer import check_trainer, evaluation_trainer, quieten_lightning


@dataclass(frozen=True)
class Evaluation:
    """checkpoint: any file that `load_network` takes, or an ONNX one."""

    checkpoint: str


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    quieten_lightning()
    with in_one_sentence():
        _evaluate(cfg)


def _evaluate(cfg: DictConfig) -> None:
    path, trainer = Path(options(cfg, Evaluation).checkpoint), plain(cfg.trainer)
    check_options(trainer)
    check_trainer(trainer)
    data = read_data(cfg)
    if path.suffix == ".onnx":
        _evaluate_onnx(path, data)
        return
    network = load_network(path, read_architecture(cfg, data) if "model" in cfg else None)
    check_classifies(without_values(network), data.input_size, data.num_classes, str(path))
    try:
        check_finite(network, str(path))
    except ValueError as error:
        print(f"Warning: {error}", file=sys.stderr)
    accuracy = evaluate(evaluation_trainer(trainer), network, data)
    print(f"top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} % of {data.num_test:,} test images")
    print(f"{num_parameters(network):,} parameters, {num_flops(network, data.input_size) / 1e8:.2f}e8 FLOPs")


def _evaluate_onnx(path: Path, data: ImageData) -> None:
    from jointsvd.deployment.onnx_runtime import onnx_session  # of the extra "onnx", which other files do not need

    if not path.is_file():
        raise ValueError(f"no file at {path}")
    content = path.read_bytes()
    session = onnx_session(content)
    print(f"top-1 {top1(lambda x: torch.from_numpy(session(x)), data):.2f} % of {data.num_test:,} test images")
    print(f"{len(content):,} bytes")


if __name__ == "__main__":
    main()
