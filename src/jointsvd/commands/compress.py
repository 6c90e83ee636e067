"""jointsvd compress: a trained network in, the network at a budget out, and what was done to each layer."""

import json

import hydra
from omegaconf import DictConfig

from jointsvd.commands.config import CONF
from jointsvd.commands.train import start
from jointsvd.network.files import read_metadata
from jointsvd.results.describe import describe
from jointsvd.results.report import print_table
from jointsvd.training.devices import is_main_process


@hydra.main(config_path=CONF, config_name="compress", version_base="1.3")
def main(cfg: DictConfig) -> None:
    settings = start(cfg)
    if is_main_process() and settings.plan is None:
        file = settings.decomposed_file
        table = describe(json.loads(read_metadata(file)["facts"])["report"], file.parent)
        print_table(table, "Errors: KL divergence from the dense network's predictions, nats an image.")
        print(f"Saved {file}, and layers.md and layers.png beside it")


if __name__ == "__main__":
    main()
