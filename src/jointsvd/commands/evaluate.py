"""python -m jointsvd.commands.evaluate checkpoint=FILE data=digits: accuracy, parameters and FLOPs of any saved network.

Of an ONNX file: accuracy in ONNX Runtime, and bytes.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from jointsvd.deployment.onnx_runtime import onnx_session, top1
from jointsvd.experiment.settings import CONF, architecture, read_data
from jointsvd.experiment.stages import make_trainer, quieten_lightning
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.training.checkpoints import load_network
from jointsvd.training.classifier import evaluate


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    quieten_lightning()
    try:
        data = read_data(cfg)
        if Path(cfg.checkpoint).suffix == ".onnx":
            content = Path(cfg.checkpoint).read_bytes()
            print(f"top-1 {top1(onnx_session(content), data):.2f} % of {data.num_test:,} test images")
            print(f"{len(content):,} bytes")
            return
        network = load_network(cfg.checkpoint, architecture(cfg.model, data) if "model" in cfg else None)
        accuracy = evaluate(make_trainer(cfg), network, data)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(f"top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} % of {data.num_test:,} test images")
    print(f"{num_parameters(network):,} parameters, {num_flops(network, data.input_size) / 1e8:.2f}e8 FLOPs")


if __name__ == "__main__":
    main()
