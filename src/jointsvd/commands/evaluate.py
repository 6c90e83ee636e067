"""jointsvd evaluate: accuracy, parameters and FLOPs of any saved network; of an ONNX file, accuracy and bytes."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from jointsvd.commands.config import CONF, plain, read_architecture, read_data
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.training.checkpoints import load_network
from jointsvd.training.classifier import evaluate, top1
from jointsvd.training.data import ImageData
from jointsvd.training.trainer import evaluation_trainer, quieten_lightning


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    quieten_lightning()
    try:
        data, path = read_data(cfg), Path(cfg.checkpoint)
        if path.suffix == ".onnx":
            _evaluate_onnx(path, data)
            return
        network = load_network(path, read_architecture(cfg, data) if "model" in cfg else None)
        accuracy = evaluate(evaluation_trainer(plain(cfg.trainer)), network, data)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(f"top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} % of {data.num_test:,} test images")
    print(f"{num_parameters(network):,} parameters, {num_flops(network, data.input_size) / 1e8:.2f}e8 FLOPs")


def _evaluate_onnx(path: Path, data: ImageData) -> None:
    from jointsvd.deployment.onnx_runtime import onnx_session  # of the extra "onnx", which other files do not need

    content = path.read_bytes()
    session = onnx_session(content)
    print(f"top-1 {top1(lambda x: torch.from_numpy(session(x)), data):.2f} % of {data.num_test:,} test images")
    print(f"{len(content):,} bytes")


if __name__ == "__main__":
    main()
